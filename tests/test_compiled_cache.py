"""Compiled kernels on disk: code of changed sources is not taken, and damaged files or folders do no harm."""

import contextlib
import gc
import importlib
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core import event
from numba.core.dispatcher import Dispatcher

from ide_ref import _kernels
from ide_ref._kernels import _jit

LOW = "from ide_ref._kernels._jit import njit\n\n\n@njit\ndef low(x):\n    return {} * x\n"
HIGH = """
from ide_ref._kernels._jit import njit
from ide_ref._kernels.low import low


@njit
def high(x):
    return low(x) + 1
"""


def test_a_kernel_follows_the_sources_of_those_it_calls(tmp_path):
    """The file of one that is called changes between two processes, and that of its caller does not."""
    kernels = tmp_path / "ide_ref" / "_kernels"
    kernels.mkdir(parents=True)
    (kernels.parent / "__init__.py").touch()
    (kernels / "__init__.py").touch()
    shutil.copy(_jit.__file__, kernels)
    (kernels / "high.py").write_text(HIGH)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(tmp_path / "compiled")}

    def run(factor):
        (kernels / "low.py").write_text(LOW.format(factor))
        code = "from ide_ref._kernels.high import high; print(high(10), sum(high.stats.cache_hits.values()))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert not done.stderr
        return done.stdout.split()

    assert run(2) == ["21", "0"]
    kept = sorted((tmp_path / "compiled").rglob("*"))
    assert run(3) == ["31", "0"]
    # The new code is in the old one's place: versions do not pile up.
    assert sorted((tmp_path / "compiled").rglob("*")) == kept


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(_kernels.__path__)])
def test_every_kernel_is_kept_so(module):
    """Numba's own decorator in a kernel file would take stale code of those it calls."""
    module = importlib.import_module(f"ide_ref._kernels.{module}")
    for kernel in vars(module).values():
        if isinstance(kernel, _jit.Forms):
            assert kernel.__doc__ == kernel.one.py_func.__doc__
        for form in (kernel.one, kernel.many) if isinstance(kernel, _jit.Forms) else (kernel,):
            if isinstance(form, Dispatcher):
                assert isinstance(form._cache, _jit._Cache)


def test_a_helper_is_compiled_into_kernels_alone_with_its_own_options():
    """Python reads it as written; a kernel contains it with fused products where it allows them, and only there."""

    kernels = {}
    for fused, mark in ((False, _jit.helper), (True, _jit.helper(fastmath={"contract"}))):

        @mark
        def within(x, y):
            return x * x - y

        assert within(3.0, 2.0) == 7.0
        kernels[fused] = numba.njit(lambda x, y, within=within: within(x, y))
    # (1 + ε)² is 1 + 2ε + ε², of which a product that is rounded keeps 1 + 2ε.
    x = 1 + np.finfo(float).eps
    exact = {True: np.finfo(float).eps ** 2, False: 0.0}
    for fused, kernel in kernels.items():
        assert kernel(x, x * x) == exact[fused]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning")
def test_one_thread_has_code_of_its_own(function, tmp_path):
    before = numba.get_num_threads()
    try:
        for again in (False, True):
            forms = _jit.njit(function, parallel=True)
            for n_threads, used, other in ((1, forms.one, forms.many), (2, forms.many, forms.one)):
                n_calls = len(other.signatures)
                numba.set_num_threads(n_threads)
                assert forms(21) == 42
                assert bool(used.stats.cache_hits) == again
                assert len(other.signatures) == n_calls
            assert not forms.one.targetoptions.get("parallel")
            assert forms.many.targetoptions["parallel"]
    finally:
        numba.set_num_threads(before)
    assert len(list((tmp_path / "__pycache__").glob("*.nbc"))) == 2


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A function of a file of its own, beside which it is kept compiled."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    path = tmp_path / "module.py"
    path.write_text("def twice(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location("module", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "module", module)
    spec.loader.exec_module(module)
    return module.twice


def found(function):
    """Whether compiled code was found, after a call that must be right."""
    compiled = _jit.njit(function)
    assert compiled(21) == 42
    return bool(compiled.stats.cache_hits)


def test_code_of_another_version_is_not_taken_nor_given_to_others(function, monkeypatch):
    assert [found(function), found(function)] == [False, True]
    monkeypatch.setattr(_jit, "_version", lambda: "another")
    assert [found(function), found(function)] == [False, True]
    # Numba's own decorator neither takes what is kept here nor is changed in any other way.
    other = numba.njit(cache=True)(function)
    assert other(21) == 42
    assert not other.stats.cache_hits
    assert type(other._cache) is not type(_jit.njit(function)._cache)


@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("left", [0, 10, -9])
def test_damaged_files_are_compiled_anew(function, tmp_path, pattern, left):
    assert not found(function)
    (file,) = (tmp_path / "__pycache__").glob(pattern)
    file.write_bytes(file.read_bytes()[:left])
    # Numba 0.58 sometimes takes one more compilation to keep it again.
    first, second, third = (found(function) for _ in range(3))
    assert not first
    assert second or third


def test_where_nothing_can_be_kept_one_warning_says_so(function, monkeypatch):
    def refuse(self):
        raise OSError("read-only")

    monkeypatch.setattr(numba.core.caching._CacheLocator, "ensure_cache_path", refuse)
    _jit._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="set NUMBA_CACHE_DIR to one") as told:
        assert [found(function), found(function)] == [False, False]
    assert len(told) == 1
    # No caller is to blame, least of all what imports the package.
    assert told[0].filename == _jit.__file__
    _jit._warn_once.cache_clear()


def test_a_disk_that_fills_up_later_costs_the_cache_alone(function, monkeypatch):
    def refuse(self, key, data):
        raise OSError("no space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", refuse)
    assert [found(function), found(function)] == [False, False]


class Watch(event.Listener):
    """Whether Python collects garbage as a compilation begins, and as it ends."""

    def __init__(self):
        self.seen = []

    def on_start(self, started):
        self.seen.append(gc.isenabled())

    def on_end(self, ended):
        self.seen.append(gc.isenabled())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("wrong", [True, False])
def test_no_garbage_is_collected_while_a_kernel_compiles_and_as_before_afterwards(before, ours, wrong):
    """Also where compiling fails; what others compile is theirs."""

    def inner(x):
        return x.nothing if wrong else x + 1

    inner = numba.njit(inner)

    def outer(x):
        return inner(x)

    if ours:
        outer.__module__ = "ide_ref._kernels.elsewhere"
    watch, enabled = Watch(), gc.isenabled()
    event.register("numba:compile", watch)
    try:
        gc.enable() if before else gc.disable()
        with pytest.raises(numba.TypingError) if wrong else contextlib.nullcontext():
            numba.njit(outer)(1.0)
        assert gc.isenabled() == before
    finally:
        event.unregister("numba:compile", watch)
        gc.enable() if enabled else gc.disable()
    # Begun outside and inside, ended inside and outside.
    assert watch.seen == [before and not ours] * 3 + [before]
