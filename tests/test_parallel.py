"""Training split over ranks: the plain step's numbers, and the same bits from any number of ranks."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import LIF, Connection, Dense, Network, Population, Readout, Restriction, parallel
from ide_ref.authors import Profile, authors
from ide_ref.constraints import dropout_mask
from ide_ref.maps import fold
from ide_ref.parallel import BLOCK, Node, Sums
from ide_ref.presets import Preset
from ide_ref.synapses import Conv2d
from ide_ref.training import checkpoint
from ide_ref.training.evaluation import load_data
from ide_ref.training.loop import train
from ide_ref.training.step import training_step

BATCHES = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 25, 33, 40])
PROFILES = (None, Profile(batch_statistics_in_gradient=True), Profile(statistics_twice=True, sweep_first=True))


def network(shape=(1, 4, 4)):
    """Two convolutional populations; batch normalisation and dropout on input, hidden and feedback connections."""
    first = Conv2d.over(shape, 3, kernel=3, padding=1)
    second = Conv2d.over(first.out_shape, 2, kernel=3, padding=1)
    back = Conv2d.over(second.out_shape, 3, kernel=3, padding=1)
    return Network(
        shape,
        (Population("one", first.out_shape), Population("two", second.out_shape)),
        (
            Connection("in", "input", "one", first, bias=True, batch_norm=True, dropout=0.2),
            Connection("up", "one", "two", second, bias=True, batch_norm=True, dropout=0.1),
            Connection("down", "two", "one", back, bias=True, batch_norm=True, restriction=Restriction(0.5)),
        ),
        Readout("two", Dense(second.out_shape, (4,))),
        LIF(0.9, 1.0),
    )


def stepped(group, preset, x, y, params):
    velocity = {name: np.full_like(params[name], 0.01) for name in preset.network.trainable}
    rng = np.random.default_rng(5)
    done = training_step(preset, params, velocity, x, y, rate=0.1, rng=rng, group=group)
    return done, rng.integers(1 << 60)


def prepared(n_batch, dtype, seed, profile=None, spikes=False):
    net = network()
    recipe = replace(
        tiny.RECIPE,
        n_steps=4,
        dtype=dtype,
        tol=1e-13 if dtype == "float64" else 1e-5,
        input="spikes" if spikes else "static",
    )
    preset = Preset.of(net, recipe)
    preset = preset if profile is None else replace(preset, profile=profile)
    rng = np.random.default_rng(seed)
    params = preset.network.init(rng, dtype=dtype)
    # Statistics and scales that are no 0 and 1.
    params = {
        n: (p + rng.uniform(0, 0.5, p.shape)).astype(dtype) if ".bn_" in n or ".running" in n else p
        for n, p in params.items()
    }
    if spikes:
        x = (rng.random((n_batch, 4, 1, 4, 4)) < 0.4).astype(dtype)
    else:
        x = rng.normal(1, 2, (n_batch, 1, 4, 4)).astype(dtype)
    return preset, x, rng.integers(4, size=n_batch), params


@given(
    BATCHES,
    st.sampled_from(["float64", "float32"]),
    st.integers(0, 9),
    st.sampled_from(
        [None, Profile(batch_statistics_in_gradient=True), Profile(statistics_twice=True, sweep_first=True)]
    ),
    st.booleans(),
    st.sampled_from([2, 3, 4]),
)
def test_any_number_of_ranks_makes_the_plain_step_and_the_same_bits(n_batch, dtype, seed, profile, spikes, several):
    preset, x, y, params = prepared(n_batch, dtype, seed, profile, spikes)
    plain, drawn = stepped(None, preset, x, y, params)
    alone = None
    for size in (1, several):
        for done, drawn_there in ranks.run(size, lambda group: stepped(group, preset, x, y, params)):
            alone = done if alone is None else alone
            assert drawn_there == drawn
            assert tiny.same(done.params, alone.params)
            assert tiny.same(done.velocity, alone.velocity)
            assert (done.loss, done.n_correct) == (alone.loss, alone.n_correct)
    assert alone.n_correct == plain.n_correct
    np.testing.assert_array_equal(alone.rates.n_spikes, plain.rates.n_spikes)
    tol = {"rtol": 1e-10, "atol": 1e-13} if dtype == "float64" else {"rtol": 2e-3, "atol": 2e-5}
    for name, expected in {**plain.backward.gradients, **plain.backward.statistics}.items():
        found = {**alone.backward.gradients, **alone.backward.statistics}[name]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, **tol, err_msg=name)


def test_inputs_far_from_0_keep_their_gradient_in_float32():
    preset, x, y, params = prepared(20, "float32", 1)
    x += 300
    exact = replace(preset, recipe=replace(preset.recipe, dtype="float64", tol=1e-13))
    in_float64 = {name: array.astype(np.float64) for name, array in params.items()}
    expected = stepped(None, exact, x.astype(np.float64), y, in_float64)[0].backward.gradients["in.weight"]
    size = np.abs(expected).max()
    plain = stepped(None, preset, x, y, params)[0].backward.gradients["in.weight"]
    (done, _), _ = ranks.run(2, lambda group: stepped(group, preset, x, y, params))
    error = np.abs(done.backward.gradients["in.weight"] - expected).max() / size
    assert error < 3 * np.abs(plain - expected).max() / size + 1e-4


def test_the_way_back_through_a_normalisation_adds_up_to_0_where_the_mean_is_rounded():
    preset, _, _, params = prepared(64, "float32", 1)
    folded = fold(preset.network, params, training=True)
    m, pullback = folded.maps[0], folded.pullbacks[0]
    z = (3000 + np.random.default_rng(2).normal(size=(64, m.synapse.n_out))).astype(np.float32)
    # Along z, so that much of it is taken off.
    delta = (z - z.mean(axis=0)).astype(np.float32)
    sums = Sums.of(z, 3, delta)
    assert np.any(sums.mean.astype(np.float32) != sums.mean)
    way, _, _ = parallel._normalisation(pullback, m, sums)
    d_z = way.back(delta, z).reshape(-1, 3).astype(np.float64)
    scale = np.abs(np.float64(way.scale)) * np.abs(delta).reshape(-1, 3).sum(axis=0)
    np.testing.assert_array_less(np.abs(d_z.sum(axis=0)), 2e-6 * scale)


@given(st.integers(1, 70), st.integers(1, 9))
def test_blocks_are_dealt_once_and_their_sums_form_one_tree(n_batch, size):
    dealt = [k for k_s in ranks.run(size, lambda group: group.blocks(n_batch)) for k in k_s]
    assert dealt == list(range(-(-n_batch // BLOCK)))

    def tree(first, n):
        if n == 1:
            return str(first)
        left = 1 << (n - 1).bit_length() - 1
        return f"({tree(first, left)}+{tree(first + left, n - left)})"

    def add(left, right):
        return f"({left}+{right})"

    def own(group):
        return parallel.partial_sums([Node(0, k, str(k)) for k in group.blocks(n_batch)], add)

    nodes = [node for found in ranks.run(size, own) for node in found]
    assert parallel.whole_sum(nodes, add) == tree(0, len(dealt))


@given(BATCHES, st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_masks_are_those_of_the_whole_batch(n_batch, n_out, size, seed):
    whole = np.random.default_rng(seed)
    expected = dropout_mask((n_batch, n_out), 0.3, whole, np.float32)

    def own(group):
        rng = np.random.default_rng(seed)
        masks = parallel._masks(n_batch, n_out, group.blocks(n_batch), 0.3, rng, np.dtype(np.float32))
        return masks, rng.integers(1 << 60)

    following = whole.integers(1 << 60)
    found = ranks.run(size, own)
    assert {drawn for _, drawn in found} == {following}
    np.testing.assert_array_equal(np.concatenate([m for masks, _ in found for m in masks]), expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 9), st.sampled_from([0.0, 1e4]))
def test_sums_of_parts_are_those_of_the_whole(sizes, seed, shift):
    rng = np.random.default_rng(seed)
    z, delta = rng.normal(shift, 1, (sum(sizes), 6)), rng.normal(size=(sum(sizes), 6))
    ends = np.cumsum([0, *sizes])
    nodes = [Node(0, k, Sums.of(z[a:b], 3, delta[a:b])) for k, (a, b) in enumerate(itertools.pairwise(ends))]
    found = parallel.whole_sum(nodes, Sums.plus)
    rows, columns = z.reshape(-1, 3), delta.reshape(-1, 3)
    centred = rows - rows.mean(axis=0)
    assert found.n == len(rows)
    for part, expected in (
        (found.mean, rows.mean(axis=0)),
        (found.spread, np.square(centred).sum(axis=0)),
        (found.delta, columns.sum(axis=0)),
        (found.along, (columns * centred).sum(axis=0)),
    ):
        np.testing.assert_allclose(part, expected, rtol=1e-9, atol=1e-9)


def test_what_fails_on_one_rank_is_raised_on_all():
    def work(group):
        return group.alltoall(lambda: [1 // (group.rank - 1)] * group.size)

    for found in ranks.run(3, work):
        assert isinstance(found, ZeroDivisionError)


def test_a_rank_that_is_slow_is_named(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(parallel.time, "perf_counter", lambda: next(clock))

    def work(group):
        # Each look at the clock is a second.
        group.count(range(group.rank, 3))
        group.timed((lambda: [next(clock) for _ in range(9)]) if group.rank == 2 else (lambda: None))()
        return group.slow()

    for said in ranks.run(4, work):
        assert said.startswith("rank 2 on ")
        assert said.endswith(": a block of samples took it 10000 ms, the median of all ranks is 500 ms")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": replace(tiny.RECIPE, method="stbp")}, "method is 'stbp'"),
        ({"profile": authors(1)}, "the profile couples the samples"),
    ],
)
def test_what_is_not_split_is_refused(tmp_path, changes, named):
    preset = replace(tiny.preset(), **changes)
    for error in ranks.run(2, lambda group: train(preset, tiny.data(), out=tmp_path / "out", group=group)):
        assert isinstance(error, ValueError)
        assert named in str(error)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    """A training by a single rank."""
    out = tmp_path_factory.mktemp("one") / "out"
    return ranks.run(1, lambda group: train(PRESET, tiny.data(), out=out, seed=1, group=group))[0].checkpoint


PRESET = tiny.preset(batch_size=20, epochs=2)


def numbers(state):
    """Metrics without the clock."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "test_seconds")} for line in state.history]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_training_is_the_same_by_any_number_of_ranks_also_resumed_by_another(tmp_path, of_one, size):
    out, lines = tmp_path / "out", io.StringIO()
    options = {"out": out, "seed": 1, "log": lines}

    def stopped(group):
        # Only the first rank is asked.
        steps = iter(range(100))
        callback = (lambda state, event: next(steps) == 3) if group.is_first else None
        return train(PRESET, tiny.data(), callback=callback or (lambda *_: True), group=group, **options)

    for done in ranks.run(size, stopped):
        assert done.stopped_by == "callback"
        assert (done.checkpoint.epoch, done.checkpoint.step) == (1, 0)
    assert lines.getvalue().count("epoch   1/2") == 1
    for done in ranks.run(size - 1, lambda group: train(PRESET, tiny.data(), resume=True, group=group, **options)):
        assert tiny.same(done.checkpoint.params, of_one.params)
        assert tiny.same(done.checkpoint.velocity, of_one.velocity)
    saved = checkpoint.load(out)
    assert tiny.same(saved.params, of_one.params)
    assert numbers(saved) == numbers(of_one)


def mpiexec(*words, n=2):
    """Status, output and errors of Python under MPI."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    launcher = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if launcher is None:
        pytest.skip("there is no mpiexec")
    command = [launcher, "-n", str(n), sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


TINY = ("-m", "ide_ref", "train", "digits", "--limit", "64", "--batch-size", "32", "--n-steps", "2")


SIGNALLED = """
import os, signal, sys, threading, time
from mpi4py import MPI
from ide_ref.cli import main

def watch(metrics):
    while not (os.path.exists(metrics) and os.path.getsize(metrics)):
        time.sleep(0.01)
    os.kill(os.getpid(), int(sys.argv[1]))

if MPI.COMM_WORLD.rank == 1:
    threading.Thread(target=watch, args=[sys.argv[-1] + "/metrics.jsonl"], daemon=True).start()
sys.exit(main(sys.argv[2:]))
"""
"""The command line, whose second rank sends itself a signal after the first epoch."""


@pytest.mark.slow
def test_mpiexec_trains_and_says_everything_once(tmp_path):
    found = []
    for n in (1, 2, 3):
        status, out, err = mpiexec(*TINY, "--mpi", "--epochs", "1", "--out", str(tmp_path / str(n)), n=n)
        assert status == 0, err
        assert out.count("test accuracy") == 1
        assert err.count("epoch   1/1") == 1
        found.append(checkpoint.load(tmp_path / str(n)))
    for state in found:
        assert tiny.same(state.params, found[0].params)
        assert numbers(state) == numbers(found[0])
    status, _, err = mpiexec(*TINY, "--out", str(tmp_path / "3"))
    assert status == 2
    assert err.count("holds a training already") == 1
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "said"), [(signal.SIGKILL, "killed"), (signal.SIGTERM, "stopped and saved")])
def test_a_rank_that_is_killed_or_told_to_stop_ends_the_run_and_leaves_a_checkpoint(tmp_path, signum, said):
    out = tmp_path / "out"
    status, told, err = mpiexec("-c", SIGNALLED, str(int(signum)), *TINY[2:], "--epochs", "40", "--out", str(out))
    assert status != 0
    assert said in (told + err).lower()
    n_epochs = checkpoint.load(out).epoch
    assert 0 < n_epochs < 40
    status, _, err = mpiexec(*TINY, "--epochs", str(n_epochs + 1), "--resume", "--out", str(out), n=3)
    assert status == 0, err
    saved = checkpoint.load(out)
    options = {"out": tmp_path / "straight", "seed": saved.seed}
    (straight,) = ranks.run(
        1, lambda group: train(saved.preset, load_data(saved.preset, limit=64), group=group, **options)
    )
    assert saved.epoch == straight.checkpoint.epoch == n_epochs + 1
    assert tiny.same(saved.params, straight.checkpoint.params)
