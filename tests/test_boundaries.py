"""Arguments as they come: however they lie in memory, of any dtype and size, and under any number of threads."""

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from graphs import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from ide_ref import IF, SGD, backward, build, cross_entropy, find_equilibrium, freeze, read_out, simulate
from ide_ref.continuous import PiecewiseInput, Pulses, simulate_continuous
from ide_ref.simulation import Rates

ROOT = Path(__file__).parents[1]


def digest(*dicts):
    """Of names, dtypes and bits, in the machine's byte order."""
    found = hashlib.sha256()
    for arrays in dicts:
        for name, as_given in arrays.items():
            array = np.asarray(as_given, as_given.dtype.newbyteorder("="))
            found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def training_step(network, params, x, y, velocity, *, training=True, n_steps=4, solver="fixed_point", tol=1e-5):
    """Digest of all that a training step leaves behind."""
    n_steps = x.shape[1] if network.is_spike_input(x) else n_steps
    frozen = freeze(network, params, x, training=training, rng=np.random.default_rng(0))
    rates = simulate(frozen, x, n_steps)
    loss, d_logits = cross_entropy(read_out(frozen, rates), y)
    back = backward(frozen, rates, d_logits, solver=solver, tol=tol, max_iter=30, allow_unconverged=True)
    params, velocity = SGD().step({**params, **back.statistics}, velocity, back.gradients, rate=0.1)
    return digest(back.gradients, back.statistics, params, velocity, {"loss": np.asarray(loss), "a": rates.a})


def strided(array):
    """The same numbers, every second along every axis of a larger array."""
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[(*(slice(None, None, 2) for _ in array.shape), ...)]
    view[...] = array
    return view


def unaligned(array):
    """The same numbers at an address that is no multiple of their size."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape) if array.nbytes else array
    view[...] = array
    return view


LAYOUTS = {
    "Fortran": lambda array: np.asarray(array, order="F"),
    "strided": strided,
    "reversed": lambda array: np.flip(np.flip(array).copy()),
    "unaligned": unaligned,
    "swapped": lambda array: array.astype(array.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15)
@given(case=cases(contractive=True, max_populations=2))
def test_bits_do_not_depend_on_how_arguments_lie_in_memory(layout, case):
    lay = LAYOUTS[layout]
    velocity = {name: 0.1 * case.params[name] for name in case.network.trainable}
    expected = training_step(case.network, case.params, case.x, case.y, velocity, training=case.training)
    params, velocity = ({name: lay(value) for name, value in part.items()} for part in (case.params, velocity))
    assert expected == training_step(case.network, params, lay(case.x), lay(case.y), velocity, training=case.training)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rates_logits_and_large_parameters_in_other_layouts(layout):
    lay = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    network = build("30 (F30)", input_shape=(50,), n_classes=9, neuron=IF())
    frozen = freeze(network, network.init(rng))
    rates = simulate(frozen, rng.normal(size=(9, 50)), 6)
    other = Rates(**{**vars(rates), "a": lay(rates.a), "x_mean": lay(rates.x_mean)})
    logits = read_out(frozen, rates)
    np.testing.assert_array_equal(read_out(frozen, other), logits)
    labels = np.arange(9)
    loss, d_logits = cross_entropy(logits, labels)
    again, d_again = cross_entropy(lay(logits), lay(labels))
    assert loss == again
    np.testing.assert_array_equal(d_again, d_logits)
    np.testing.assert_array_equal(
        backward(frozen, rates, lay(d_logits)).gradients["readout.bias"],
        backward(frozen, rates, d_logits).gradients["readout.bias"],
    )
    # From some size on the optimiser's step is a kernel.
    theta, gradient, v = rng.normal(size=(3, 400, 400))
    plain = SGD().step({"w": theta}, {"w": v}, {"w": gradient}, rate=0.1)
    for ours, theirs in zip(
        SGD().step({"w": lay(theta)}, {"w": lay(v)}, {"w": lay(gradient)}, rate=0.1), plain, strict=True
    ):
        assert ours["w"].dtype.isnative
        np.testing.assert_array_equal(ours["w"], theirs["w"])
    at = np.array([1.0, 4.0])
    x = rng.normal(size=50)
    for plain_x, laid_x in (
        (x, lay(x)),
        (
            PiecewiseInput(np.array([0.0, 2.0]), np.stack([x, -x])),
            PiecewiseInput(lay(np.array([0.0, 2.0])), lay(np.stack([x, -x]))),
        ),
        (Pulses(at / 2, np.array([3, 7])), Pulses(lay(at / 2), lay(np.array([3, 7])))),
    ):
        expected, run = simulate_continuous(frozen, plain_x, at), simulate_continuous(frozen, laid_x, lay(at))
        for name in ("spike_times", "spike_neurons", "u", "a"):
            np.testing.assert_array_equal(getattr(run, name), getattr(expected, name))


STEPS = """
import numpy as np
from test_boundaries import training_step
from ide_ref import IF, SGD, build
for structure, shape in (("200 (F200)", (784,)), ("16C5s (F16C5)", (1, 20, 20))):
    for solver in ("fixed_point", "anderson"):
        network = build(structure, input_shape=shape, n_classes=10, neuron=IF(), dropout=0.2)
        rng = np.random.default_rng(0)
        params = network.init(rng)
        velocity = SGD().start(params, network.trainable)
        print(training_step(network, params, rng.normal(size=(9, *shape)), np.arange(9), velocity, solver=solver))
"""


def test_bits_of_a_training_step_do_not_depend_on_threads():
    def begin(n):
        threads = {f"{library}_NUM_THREADS": str(n) for library in ("OPENBLAS", "NUMBA", "OMP")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return subprocess.Popen(
            [sys.executable, "-c", STEPS], env={**os.environ, **threads, "PYTHONPATH": path}, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    one, two = (process.communicate(timeout=300)[0].split() for process in [begin(1), begin(2)])
    assert len(one) == 4
    assert one == two


DTYPES = ["?", "i1", "u1", "<i4", ">i4", "<i8", ">u8", "f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "<c8", "O", "S1"]


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    own=st.sampled_from([np.float32, np.float64]),
    argument=st.sampled_from(["x", "params", "state", "logits", "y", "sgd", "continuous", "times"]),
)
def test_any_dtype_is_converted_or_refused_by_name(dtype, own, argument):
    """1 and 0 are the same number in all of them, so what is taken must give the same as the network's own dtype."""
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(), batch_norm=False)
    params = network.init(np.random.default_rng(0), dtype=own)
    x = np.array([[1, 0, 1], [0, 1, 1]])
    frozen = freeze(network, params)
    rates = simulate(frozen, x, 3)
    wide = freeze(network, network.init(np.random.default_rng(0)))
    weights = {"w": np.ones((2, 2), own)}

    def run(kind):
        def cast(array):
            return np.asarray(array).astype(kind)

        if argument == "x":
            there = freeze(network, params, cast(x), training=True)
            return simulate(there, cast(x), 3).a
        if argument == "params":
            ones = {name: cast(np.ones_like(value)) for name, value in params.items()}
            return simulate(freeze(network, ones), x, 3).a
        if argument == "state":
            return read_out(frozen, Rates(**{**vars(rates), "a": cast(np.ones_like(rates.a))}))
        if argument == "logits":
            return cross_entropy(cast(x), [0, 1])[1]
        if argument == "y":
            return cross_entropy(np.eye(2), cast(np.array([0, 1])))[1]
        if argument == "sgd":
            return SGD().step(weights, {"w": cast(weights["w"])}, {"w": cast(weights["w"])}, rate=0.5)[0]["w"]
        if argument == "times":
            return simulate_continuous(wide, x[0], cast(np.array([1, 1]))).u
        return simulate_continuous(wide, cast(x[0]), np.array([1.0, 7.0])).u

    expected = run(np.int64 if argument == "y" else np.float64 if argument == "logits" else own)
    refused = {
        "logits": DTYPES[:7] + DTYPES[-3:], "y": [*DTYPES[:1], *DTYPES[7:]], "params": [*DTYPES[:9], *DTYPES[-4:]]
    }.get(argument, DTYPES[-3:])  # fmt: skip
    if dtype in refused or (argument == "sgd" and dtype == "?"):
        name = {"params": "parameters?", "sgd": "(velocity|gradients)"}.get(argument, argument)
        with pytest.raises(ValueError, match=rf"\b{'x' if argument == 'continuous' else name}\b.* expected "):
            run(dtype)
        return
    found = np.asarray(run(dtype), np.float64)
    np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype in ("f2", ">f2") else 1e-6)


@pytest.mark.parametrize("size", [1e39, 1e300, -1e300])
def test_numbers_beyond_float32_are_refused_by_name(size):
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(), batch_norm=False)
    params = network.init(np.random.default_rng(0), dtype=np.float32)
    x = np.array([[1.0, size, 0.0]])
    frozen = freeze(network, params)
    rates = simulate(frozen, np.zeros((1, 3)), 3)
    huge = Rates(**{**vars(rates), "a": np.full((1, 4), size)})
    weights = {"w": np.ones(2, np.float32)}
    for call, name in (
        (lambda: simulate(frozen, x, 3), "x"),
        (lambda: freeze(network, params, x, training=True), "x"),
        (lambda: find_equilibrium(frozen, x), "x"),
        (lambda: read_out(frozen, huge), "state.a"),
        (lambda: SGD().step(weights, weights, {"w": np.full(2, size)}, rate=0.1), "gradients of 'w'"),
    ):
        with pytest.raises(ValueError, match=rf"{name} has values as large as .*, beyond float32"):
            call()
    with pytest.raises(ValueError, match=r"x has values as large as 1\.e\+4000, beyond float64"):
        simulate_continuous(
            freeze(network, network.init(np.random.default_rng(0))), np.full(3, np.longdouble("1e4000")), [1]
        )


def normalised(dtype):
    network = build("6 (F6)", input_shape=(5,), n_classes=3, neuron=IF())
    params = network.init(np.random.default_rng(0), dtype=dtype)
    return network, params, np.random.default_rng(1).normal(size=(8, 5)), np.arange(8) % 3


def gradients_at(network, params, x, y, tol):
    frozen = freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    state = find_equilibrium(frozen, x, tol=tol)
    return backward(frozen, state, cross_entropy(read_out(frozen, state), y)[1], tol=tol).gradients


@settings(max_examples=15)
@given(power=st.integers(0, 12), dtype=st.sampled_from([np.float32, np.float64]))
def test_what_batch_normalisation_takes_off_does_not_come_back_in_the_gradient(power, dtype):
    """Inputs that are moved as a whole have the same gradients, but for what their own rounding loses."""
    network, params, x, y = normalised(np.float64)
    eps = np.finfo(dtype).eps
    expected = gradients_at(network, params, x, y, 1e-12)
    params = {name: value.astype(dtype) for name, value in params.items()}
    moved = (x + 10.0**power).astype(dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gradients_at(network, params, moved, y, max(1e-12, 30 * eps))
    lost = 10.0**power * eps
    told = [str(w.message) for w in caught if "batch normalisation of connection 'input'" in str(w.message)]
    assert told or lost < 0.02
    if told:
        assert lost > 0.002
        assert "take the mean off the inputs, or compute in float64" in told[0]
        return
    for name in ("input.weight", "input.bn_weight", "input.bn_bias", "feedback.weight", "readout.weight"):
        np.testing.assert_allclose(
            found[name], expected[name], atol=(20 * lost + 1000 * eps) * np.abs(expected[name]).max(), err_msg=name
        )


def test_batch_statistics_beyond_the_dtype_are_refused():
    network, params, x, _ = normalised(np.float32)
    with pytest.raises(
        ValueError, match=r"of connection 'input': the batch's mean or variance is beyond float32; .*64"
    ):
        freeze(network, params, 1e21 * x, training=True)
    assert np.isfinite(freeze(network, params, 1e18 * x, training=True).maps[0].norm.variance).all()
