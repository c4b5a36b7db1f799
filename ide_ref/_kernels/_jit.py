"""``njit`` as every kernel uses it: without the interpreter's lock, and kept on disk for the next process.

Numba takes a compiled function from its cache as long as the function's own file is the same. A kernel contains the
code of those it calls, from other files; so here it is taken only while the sources of all kernels are the same.
"""

import contextlib
import gc
import hashlib
import warnings
from functools import cache
from pathlib import Path

import numba
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import register_jitable


@cache
def _version():
    """What the code of all kernels follows from, besides Numba, the processor and a function's types."""
    folder = Path(__file__).parent
    sources = [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.py"))]
    return hashlib.sha256(repr((sources, bool(getattr(numba.config, "BOUNDSCHECK", None)))).encode()).hexdigest()


class _Cache(FunctionCache):
    """Numba's cache of one function, for this version of all sources; what cannot be read is compiled anew."""

    def __init__(self, function, name):
        super().__init__(function)
        stamp = (self._cache_file._source_stamp, _version())
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base + name, stamp)

    def load_overload(self, *args):
        try:
            return super().load_overload(*args)
        except Exception:  # whatever reading a damaged file raises
            with contextlib.suppress(OSError):
                # An index of nothing: the next compiled code takes the place of what is damaged.
                self.flush()
            return None

    def save_overload(self, *args):
        # A full disk, or a folder that may no longer be written: compiled again by the next process.
        with contextlib.suppress(OSError):
            super().save_overload(*args)


@cache
def _warn_once():
    warnings.warn(
        "compiled kernels cannot be kept, so every process compiles them anew, for minutes: Numba finds no folder that "
        "it may write; set NUMBA_CACHE_DIR to one",
        RuntimeWarning,
        stacklevel=3,
    )


def njit(function=None, *, parallel=False, **options):
    """``numba.njit`` with these options, in a cache that knows of all kernels' sources; bare or called, as a decorator.

    A parallel kernel is compiled for one thread or for many as it is called. Where no folder for compiled code can be
    written, functions are compiled anew in each process, and a RuntimeWarning says so.
    """
    if function is None:
        return lambda given: njit(given, parallel=parallel, **options)
    return Forms(function, options) if parallel else _kept(function, options)


def helper(function=None, **options):
    """What kernels alone call, part of their code; Python reads it as it is written, so nothing compiles to call it."""
    if function is None:
        return lambda given: helper(given, **options)
    return register_jitable(**options)(function) if options else register_jitable(function)


class _Uncollected(event.Listener):
    """Keeps Python from looking for cyclic garbage while a kernel compiles, which takes a tenth of that time."""

    def __init__(self):
        self.nested = 0

    def on_start(self, started):
        # What another package compiles, too, where a kernel calls it.
        if self.nested or started.data["dispatcher"].py_func.__module__.startswith(__package__):
            self.nested += 1
            if self.nested == 1:
                self.enabled = gc.isenabled()
                gc.disable()

    def on_end(self, ended):
        if self.nested:
            self.nested -= 1
            if not self.nested and self.enabled:
                gc.enable()


# Numba compiles in one thread at a time, and its events come from there.
event.register("numba:compile", _Uncollected())


class Forms:
    """A kernel with ``prange`` as code for one thread, which takes half the time to compile, and for many."""

    def __init__(self, function, options):
        self.__doc__ = function.__doc__
        self.one = _kept(function, options, "-one")
        self.many = _kept(function, {**options, "parallel": True})

    def __call__(self, *args):
        return (self.one if numba.get_num_threads() == 1 else self.many)(*args)


def _kept(function, options, name=""):
    """A compiled function and its cache, whose files have a name of their own for each form."""
    compiled = numba.njit(nogil=True, no_cfunc_wrapper=True, **options)(function)  # nobody calls them from C
    # Where Numba is told not to compile, that is the function itself.
    if hasattr(compiled, "enable_caching"):
        try:
            compiled._cache = _Cache(function, name)
        except RuntimeError:
            _warn_once()
    return compiled
