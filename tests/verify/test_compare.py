"""Every mistake of the library, planted in the equations, is found and named."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import gradient
from small import STRUCTURES, problem, rollout

import ide_ref
from ide_ref import presets
from ide_ref.authors import PAPER, edited
from ide_ref.verify import MISTAKES, Context, check_gradient, compare
from ide_ref.verify.arrays import as_array
from ide_ref.verify.compare import Suspect, _likely

DENSE = "fashion-mnist-400"
WHERE = dict.fromkeys([m.name for m in MISTAKES], DENSE)
WHERE |= dict.fromkeys(["unflipped kernel", "flipped weight gradient", "mean over positions"], "mnist-64c5")
WHERE |= dict.fromkeys(["last frame for the mean input", "plain mean of the input", "input summed"], "nmnist-64c5")


def situation(name, profile=PAPER, **options):
    network, params, x, y = problem(name, **options)
    frozen, rates, d_logits = rollout(edited(network, profile), params, x, y)
    ours = ide_ref.backward(frozen, rates, d_logits, solver="gmres", tol=1e-12)
    return frozen, rates, x, d_logits, ours.gradients


@pytest.mark.parametrize("name", ["fashion-mnist-400", "mnist-64c5", "nmnist-64c5"])
def test_the_oracle_without_a_mistake_agrees(name):
    frozen, rates, x, d_logits, ours = situation(name)
    report = compare(ours, gradient(frozen, rates, x, d_logits), tol=1e-10)
    assert report.same, report.table()
    assert report.mistake is None
    context = Context(frozen, rates, d_logits, x)
    assert compare(ours, context.gradients(), tol=1e-10).same


@pytest.mark.parametrize("mistake", WHERE)
def test_planted_mistakes_are_named(mistake):
    frozen, rates, x, d_logits, ours = situation(WHERE[mistake])
    wrong = gradient(frozen, rates, x, d_logits, mistake)
    report = compare(ours, wrong, context=Context(frozen, rates, d_logits, x))
    assert not report.same
    assert report.mistake == mistake, report.table()
    assert report.suspects[0].says in " ".join(report.table().split())
    assert max(map(len, report.table().splitlines())) <= 120
    assert str(report) == report.table()
    assert (
        repr(report) == f"Comparison(different, {len(ours)} of {len(ours)} parameters, distance {report.distance:.1e})"
    )
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("mistake", ["last frame for the mean input", "plain mean of the input", "input summed"])
def test_a_wrong_input_changes_what_the_input_reaches_alone(mistake, monkeypatch):
    monkeypatch.setitem(STRUCTURES, "two layers of spikes", ("4C5s-6C3s (F4C3u)", (2, 8, 8), 6))
    frozen, rates, x, d_logits, _ = situation("two layers of spikes")
    context = Context(frozen, rates, d_logits, x)
    right = context.gradients()
    (planted,) = (m.plant(context) for m in MISTAKES if m.name == mistake)
    for name, value in planted.items():
        if not name.startswith("input."):
            np.testing.assert_array_equal(value, right[name], err_msg=name)
    assert not np.allclose(planted["input.weight"], right["input.weight"])


def test_mistakes_of_networks_under_the_cifar_presets_settings(monkeypatch):
    """The gradient through hidden batch statistics, which these presets take, is planted with the mistake too."""
    monkeypatch.setitem(STRUCTURES, "two layers", ("4C5s-6C3s (F4C3u)", (2, 8, 8), None))
    profile = presets.load("cifar10-alexnet-f").profile
    assert profile.batch_statistics_in_gradient
    frozen, rates, x, d_logits, ours = situation("two layers", profile)
    # By hand: what convolutions get, divided by the positions of the population that they reach.
    positions = {"input": 16, "hidden1": 4, "feedback": 16}
    port = {name: g / (1 if "alpha" in name else positions.get(name.split(".")[0], 1)) for name, g in ours.items()}
    report = compare(ours, port, context=Context(frozen, rates, d_logits, x))
    assert report.mistake == "mean over positions", report.table()


def test_named_in_single_precision_too():
    frozen, rates, x, d_logits, _ = situation(DENSE)
    right = gradient(frozen, rates, x, d_logits)
    for mistake in (name for name, place in WHERE.items() if place == DENSE):
        wrong = {k: v.astype(np.float32) for k, v in gradient(frozen, rates, x, d_logits, mistake).items()}
        assert compare(right, wrong, context=Context(frozen, rates, d_logits, x), tol=1e-4).mistake == mistake


@pytest.mark.parametrize("mistake", WHERE)
def test_gradcheck_detects_every_mistake(mistake):
    name = WHERE[mistake]
    network, params, x, y = problem(name)
    frozen, rates, x, d_logits, _ = situation(name)
    if mistake.startswith(("a[T-1]", "rates", "plain mean", "last frame", "input summed")):
        wrong = gradient(frozen, rates, x, d_logits, mistake)
    else:  # planted at the equilibrium itself, so that the mistake is all there is to find
        state = ide_ref.find_equilibrium(frozen, x)
        _, d_logits = ide_ref.cross_entropy(ide_ref.read_out(frozen, state), y)
        still = SimpleNamespace(a=state.a, n_steps=6)  # in the place of a rollout
        wrong = gradient(frozen, still, x, d_logits, mistake)
        good = gradient(frozen, still, x, d_logits)
        assert check_gradient(network, params, x, y, n_coordinates=0, n_directions=1, gradients=good).passed
    report = check_gradient(network, params, x, y, n_coordinates=0, n_directions=1, gradients=wrong)
    assert report.max_rel_error > 1e-4, report.table()


def test_one_parameter_alone():
    frozen, rates, x, d_logits, ours = situation(DENSE)
    wrong = dict(ours)
    wrong["feedback.weight"] = gradient(frozen, rates, x, d_logits, "outer product transposed")["feedback.weight"]
    wrong["readout.bias"] = 3.7 * ours["readout.bias"]
    report = compare(ours, wrong, context=Context(frozen, rates, d_logits, x))
    assert report.mistake is None
    rows = {row.parameter: row for row in report.rows}
    assert rows["feedback.weight"].looks_like == ("outer product transposed",)
    assert rows["readout.bias"].ratio == pytest.approx(3.7)
    assert rows["readout.bias"].cosine == pytest.approx(1)
    assert rows["readout.bias"].looks_like == ()
    assert rows["input.weight"].status == "same"
    assert "no single known mistake" in report.table()


@pytest.mark.parametrize(
    "mistake", ["mask missing in beta", "half of beta", "outer product transposed", "W for its transpose"]
)
def test_mistakes_at_an_equilibrium_are_named(mistake):
    network, params, x, y = problem(DENSE)
    frozen = ide_ref.freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    state = ide_ref.find_equilibrium(frozen, x)
    _, d_logits = ide_ref.cross_entropy(ide_ref.read_out(frozen, state), y)
    ours = ide_ref.backward(frozen, state, d_logits).gradients
    wrong = gradient(frozen, SimpleNamespace(a=state.a, n_steps=6), x, d_logits, mistake)
    assert compare(ours, wrong, context=Context(frozen, state, d_logits, x)).mistake == mistake


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_iterations", [2, 3, 5])
def test_an_early_end_of_beta_is_named_with_its_iterations(n_iterations, dtype, monkeypatch):
    monkeypatch.setitem(STRUCTURES, "two layers", ("4C5s-6C3s (F4C3u)", (2, 8, 8), None))
    network, params, x, y = problem("two layers", ide_ref.IF(1.0))
    frozen, rates, d_logits = rollout(network, {name: value.astype(dtype) for name, value in params.items()}, x, y)
    early, ours = (
        ide_ref.backward(frozen, rates, d_logits, solver="fixed_point", max_iter=k, allow_unconverged=True).gradients
        for k in (n_iterations, 2000)
    )
    report = compare(ours, early, context=Context(frozen, rates, d_logits, x))
    assert report.mistake == f"beta after {n_iterations} iterations", report.table()
    assert f"(BETA) was stopped after {n_iterations} iterations, begun at beta = g" in report.table()
    # Of the rest, alone.
    early["readout.bias"] = -3 * early["readout.bias"]
    rows = {row.parameter: row for row in compare(ours, early, context=Context(frozen, rates, d_logits, x)).rows}
    assert rows["hidden1.weight"].looks_like[0] == f"beta after {n_iterations} iterations"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("structure", ["4", "4 (F4)"])
def test_no_number_of_iterations_is_named_where_none_explains_it(structure, dtype):
    """Without feedback, and with one that diverges, beyond the range of single precision."""
    network = ide_ref.build(structure, input_shape=(3,), n_classes=2, neuron=ide_ref.IF(0.2), batch_norm=False)
    rng = np.random.default_rng(0)
    params, x = network.init(rng, dtype=dtype), rng.normal(0.5, 1, (6, 3))
    frozen, rates, d_logits = rollout(network, params, x, rng.integers(0, 2, 6))
    ours = ide_ref.backward(frozen, rates, d_logits, solver="direct").gradients
    theirs = {name: value + rng.normal(size=value.shape) for name, value in ours.items()}
    context = Context(frozen, rates, d_logits, x)
    report = compare(ours, theirs, context=context)
    assert (report.same, report.suspects) == (False, ())
    n_iterations = 1 + sum(1 for _ in context.iterates(1e-6))
    assert n_iterations == 1 if structure == "4" else 20 < n_iterations <= 200


def test_without_a_context():
    *_, ours = situation("mnist-64c5")
    assert compare(ours, {k: -v for k, v in ours.items()}).mistake == "sign"
    assert compare(ours, {k: v / 2 for k, v in ours.items()}).mistake == "factor 1/2"
    flipped = {k: v[:, :, ::-1, ::-1] if v.ndim == 4 else v for k, v in ours.items()}
    assert compare(ours, flipped).mistake == "flipped weight gradient"
    *_, ours = situation(DENSE)
    turned = {k: v.T if v.shape[::-1] == v.shape else v for k, v in ours.items()}
    assert compare(ours, turned).mistake == "outer product transposed"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [1.05, -2.0, 1e-3, 300.0])
def test_a_common_factor_is_told(factor, dtype):
    """A zero among the gradients, and a part of them alone, change nothing; one of another factor does."""
    rng = np.random.default_rng(0)
    ours = {name: rng.normal(size=shape).astype(dtype) for name, shape in (("w", (3, 2)), ("b", (3,)), ("s", ()))}
    ours["zero"] = np.zeros(2, dtype)
    theirs = {name: value * dtype(factor) for name, value in ours.items()}
    del theirs["b"]
    report = compare(ours, theirs)
    assert report.factor == report.to_dict()["factor"] == pytest.approx(factor, rel=1e-6)
    assert f"every gradient compared is {factor:g} times ours" in report.table()
    for off in (-1.0, 0.0, 1 + 1e-4):
        report = compare(ours, {**theirs, "s": theirs["s"] * dtype(off)})
        assert np.isnan(report.factor)
        assert "they differ, and no single known mistake explains all of it" in report.table()
    assert np.isnan(compare(ours, ours).factor)
    assert np.isnan(compare(ours, {"w": np.zeros((3, 2))}).factor)
    assert np.isnan(compare({"w": np.zeros((3, 2))}, ours).factor)


@pytest.mark.parametrize("power", [-1000, -600, 0, 500, 1000])
def test_a_power_of_two_changes_no_distance(power):
    """Also where squares leave the range: of 1e-180, gradients of opposite sign once were the same."""
    rng = np.random.default_rng(1)
    ours = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3), "far": 1e-6 * rng.normal(size=4)}
    wrong = {name: value * (1 + 1e-3 * rng.normal(size=value.shape)) for name, value in ours.items()}
    for theirs in (ours, wrong, {name: -value for name, value in ours.items()}, {"b": 1.5 * ours["b"]}):
        scaled = compare(*({name: np.ldexp(g, power) for name, g in side.items()} for side in (ours, theirs)))
        plain = compare(ours, theirs)
        assert (scaled.same, scaled.mistake) == (plain.same, plain.mistake)
        assert scaled.factor == pytest.approx(plain.factor, rel=1e-12, nan_ok=True)
        for row, expected in zip(scaled.rows, plain.rows, strict=True):
            assert (row.status, row.detail) == (expected.status, expected.detail)
            assert row.distance == pytest.approx(expected.distance, rel=1e-12, nan_ok=True)
            assert [row.cosine, row.ratio] == pytest.approx([expected.cosine, expected.ratio], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("theirs", [1e300, -1e300, 1e-300, 1.7e308])
@pytest.mark.parametrize("ours", [1e300, 1e-300, 5e-324, 1.7e308])
def test_gradients_of_any_two_sizes(ours, theirs):
    """Sums, squares and quotients beyond the range: the same where they are, and nothing else."""
    for shape in [(), (2, 3)]:
        report = compare({"w": np.full(shape, ours)}, {"w": np.full(shape, theirs)})
        assert report.same == (ours == theirs)
        expected = 2.0 if ours == -theirs else float(ours != theirs)
        assert report.distance == pytest.approx(expected, rel=1e-6)


def test_bad_arrays_are_named_in_their_row():
    *_, ours = situation(DENSE)
    theirs = dict(ours)
    del theirs["input.bias"]
    theirs["spare"] = np.zeros(3)
    theirs["input.weight"] = ours["input.weight"].T
    theirs["readout.weight"] = ours["readout.weight"].copy()
    theirs["readout.weight"][1, 2] = np.nan
    theirs["readout.bias"] = np.array(["a"] * 5)
    report = compare(ours, theirs)
    rows = {row.parameter: (row.status, row.detail) for row in report.rows}
    for name, status, detail in (
        ("input.bias", "missing", ""),
        ("spare", "unexpected", ""),
        ("input.weight", "wrong shape", "its transpose agrees"),
        ("readout.weight", "not finite", "(1, 2)"),
        ("readout.bias", "no numbers", "array 'readout.bias' is a ndarray that gives no real numbers"),
    ):
        assert rows[name][0] == status
        assert detail in rows[name][1]
    assert not report.same
    # A transpose of which nothing is known agrees with nothing.
    nothing = {**ours, "input.weight": np.full(ours["input.weight"].T.shape, np.nan)}
    row = next(row for row in compare(ours, nothing).rows if row.parameter == "input.weight")
    assert (row.status, "transpose" in row.detail) == ("wrong shape", False)


@pytest.mark.parametrize("name", ["input.weight", "readout.bias", "feedback.alpha"])
def test_a_part_of_the_parameters_is_compared_as_a_part(name):
    *_, ours = situation(DENSE)
    report = compare(ours, {name: ours[name]})
    assert (report.same, report.complete, report.n_compared, report.n_parameters) == (True, False, 1, 8)
    assert report.table().splitlines()[-2:] == ["1 of 8 parameters compared", "they agree to 1.0e-06"]
    assert {row.status for row in report.rows if row.parameter != name} == {"missing"}
    wrong = compare(ours, {name: -ours[name]})
    assert (wrong.same, wrong.mistake) == (False, "sign")
    assert "1 of 8 parameters compared\nlooks like: sign" in wrong.table()
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (found["same"], found["complete"], found["n_compared"], found["n_parameters"]) == (True, False, 1, 8)
    whole = compare(ours, ours)
    assert (whole.same, whole.complete) == (True, True)


def test_what_was_not_compared_is_not_the_same():
    *_, ours = situation(DENSE)
    for theirs, told in (
        ({}, ""),
        ({"spare": np.zeros(3)}, "unexpected"),
        ({name: np.zeros((*value.shape, 2)) for name, value in ours.items()}, "wrong shape"),
        ({"input.bias": np.zeros(3), "readout.bias": np.full(5, np.nan)}, "not finite, wrong shape"),
    ):
        report = compare(ours, theirs)
        assert not report.same
        verdict = f"\nnothing was judged; all that was given: {told}" * bool(told)
        assert report.table().endswith("0 of 8 parameters compared" + verdict)
    beside = compare(ours, {**ours, "spare": np.zeros(3)})
    assert (beside.same, beside.complete, beside.mistake) == (False, True, None)
    assert compare({"w": np.ones(2)}, {0: np.zeros(3)}).rows[1].parameter == "0"
    assert not compare({}, {}).same
    assert compare({}, {}).table().endswith("0 of 0 parameters compared")


SHAPES = st.sampled_from([(), (1,), (3,), (2, 3), (3, 2)])


@settings(deadline=None)
@given(
    shapes=st.lists(SHAPES, max_size=6),
    own=st.lists(st.booleans(), min_size=6, max_size=6),
    more=st.lists(SHAPES, max_size=2),
)
def test_other_names_are_taken_by_shape_where_it_leaves_one_choice(shapes, own, more):
    rng = np.random.default_rng(0)
    ours = {f"w{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
    called = {name: name if kept else name.replace("w", "theirs ") for name, kept in zip(ours, own, strict=False)}
    theirs = {called[name]: value for name, value in ours.items()} | {
        f"more {i}": np.ones(s) for i, s in enumerate(more)
    }
    left = [ours[name].shape for name in ours if called[name] != name]
    report = compare(ours, theirs)
    table, rows = report.table(), {row.parameter: row for row in report.rows}
    for name, value in ours.items():
        shape, row = value.shape, rows[name]
        if called[name] == name:
            assert (row.status, row.theirs) == ("same", name)
        elif left.count(shape) == 1 and shape not in more:
            assert (row.status, row.theirs) == ("same", called[name])
            assert row.detail == f"theirs is {called[name]!r}, by its shape {shape}"
            assert called[name] not in rows
            assert row.detail in table
        else:
            assert (row.status, row.theirs) == ("missing", "")
            assert rows[called[name]].status == "unexpected"
            may_be = [other for other in ours if called[other] != other and ours[other].shape == shape]
            assert rows[called[name]].detail == f"may be {' or '.join(may_be)}, by its shape {shape}"
    assert report.n_parameters == len(ours)


def test_the_tolerance_itself_is_the_same_and_mistakes_must_explain_thirty_times_more():
    ours = {"w": np.array([3.0, 4.0]), "b": np.array([1.0])}
    theirs = {**ours, "w": np.array([3.0, 5.0])}
    distance = 1 / np.linalg.norm(theirs["w"])
    assert compare(ours, theirs, tol=distance).same
    assert not compare(ours, theirs, tol=np.nextafter(distance, 0)).same
    found = [Suspect(f"leaves {left}", "", left) for left in (1 / 32, 1e-4, 1e-5, 1.01e-4, 1 / 29)]
    assert [s.left for s in _likely(found, 30 / 32, 1e-9)] == [1e-5, 1e-4]
    assert [s.left for s in _likely(found, 30 / 32, 1.01e-2)] == [1e-5, 1e-4, 1.01e-4]
    assert [s.left for s in _likely(found[:1], 30 / 32, 1e-9)] == [1 / 32]
    assert _likely(found[-1:], 1.0, 1e-9) == ()
    assert _likely([], 1.0, 1e-9) == ()


def test_two_parameters_are_never_taken_for_one():
    """One of two of a shape is left out: which one cannot be told, though its numbers are those of the other."""
    ours = {"a": np.ones(3), "b": np.full(3, 2.0)}
    report = compare(ours, {"mine": ours["a"]})
    assert [row.status for row in report.rows] == ["missing", "missing", "unexpected"]
    assert not report.same


class Brain:
    """An array of bfloat16 that NumPy cannot read, as its own library widens it."""

    dtype = "library.bfloat16"

    def __init__(self, array):
        bits = np.array(array, np.float32, ndmin=1).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        self.numbers = rounded.view(np.float32).reshape(np.shape(array))

    def __array__(self, *given, **options):
        raise TypeError("got unsupported bfloat16")

    def astype(self, dtype):
        return self.numbers.astype(dtype)


class Torch(Brain):
    """The same of a library whose arrays have no ``astype``."""

    dtype = "torch.bfloat16"
    astype = None

    def float(self):
        return self.numbers


@pytest.mark.parametrize(
    ("narrow", "grain"), [(Brain, 2**-7), (Torch, 2**-7), (np.float16, 2**-10), (np.ndarray.astype, None)]
)
def test_half_precision_is_compared_to_its_grain(narrow, grain):
    frozen, rates, x, d_logits, ours = situation(DENSE)
    context = Context(frozen, rates, d_logits, x)
    if grain is None:  # of a network in float32, too
        ours = {name: value.astype(np.float32) for name, value in ours.items()}
        narrow, grain = Brain, 2**-7
    name = "float16" if narrow is np.float16 else "bfloat16"
    report = compare(ours, {key: narrow(value) for key, value in ours.items()}, context=context)
    assert report.same, report.table()
    assert 1e-5 < report.distance < grain
    assert {row.tol for row in report.rows} == {grain}
    for row in report.rows:
        zero = "; both are zero to rounding" if row.parameter == "input.bias" else ""
        assert row.detail == f"{name}, compared to {grain:.1e}{zero}"
    assert f"they agree to {grain:.1e}" in report.table()
    assert compare(ours, {key: narrow(value) for key, value in ours.items()}, tol=0.05).rows[0].tol == 0.05
    off = {key: narrow((1 + 3 * grain) * value) for key, value in ours.items()}
    assert {row.status for row in compare(ours, off).rows if "zero" not in row.detail} == {"differs"}
    for mistake in ("half of beta", "sum loss", "mask missing in hebb"):
        wrong = {key: narrow(value) for key, value in gradient(frozen, rates, x, d_logits, mistake).items()}
        assert compare(ours, wrong, context=context).mistake == mistake


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_of_zero_is_told_in_words(dtype):
    """Of the bias before a normalisation by the batch, rounding leaves a little."""
    network, params, x, y = problem("mnist-64c5", dropout=0.0)
    frozen, rates, d_logits = rollout(network, {name: value.astype(dtype) for name, value in params.items()}, x, y)
    ours = ide_ref.backward(frozen, rates, d_logits).gradients
    assert 0 < np.linalg.norm(ours["input.bias"]) < 1e-5
    zeros = {name: np.zeros_like(value) for name, value in ours.items()}
    for theirs, which in (
        ({**ours, "input.bias": np.ones(4)}, "ours is zero to rounding"),
        ({**ours, "input.bias": zeros["input.bias"]}, "both are zero to rounding"),
    ):
        row = next(row for row in compare(ours, theirs).rows if row.parameter == "input.bias")
        assert row.detail == which
        assert np.isnan([row.ratio, row.cosine]).all()
    table = compare(ours, {**ours, "input.bias": np.ones(4)}).table()
    assert re.search(r"^input.bias +differs +1.0e\+00 +- +- +ours is zero to rounding$", table, re.M), table
    rows = {row.parameter: row for row in compare(ours, zeros).rows}
    assert rows["input.weight"].detail == "theirs is zero to rounding"
    assert rows["input.weight"].status == "differs"
    assert compare(zeros, zeros).rows[0].detail == "both are zero"
    assert compare(zeros, zeros).same


def test_wrong_arguments():
    *_, ours = situation(DENSE)
    with pytest.raises(ValueError, match="theirs is a list; expected a mapping of parameter names to gradients"):
        compare(ours, list(ours.values()))
    with pytest.raises(ValueError, match="ours is a NoneType"):
        compare(None, ours)
    with pytest.raises(ValueError, match="context is a tuple; expected a Context"):
        compare(ours, ours, context=(1, 2))
    with pytest.raises(ValueError, match="tol is nan; expected a positive"):
        compare(ours, ours, tol=float("nan"))


def only(*names):
    """What gives an array through these of its methods alone."""

    def method(name):
        return lambda self, *args, **options: getattr(self.array, name)(*args, **options)

    kind = type("Only", (SimpleNamespace,), {name: method(name) for name in names})
    return lambda array: kind(array=array)


@pytest.mark.parametrize("wrap", [only("__dlpack__", "__dlpack_device__"), only("__array__"), np.ndarray.tolist])
def test_any_array(wrap):
    *_, ours = situation(DENSE)
    assert compare(ours, {name: wrap(np.asarray(value)) for name, value in ours.items()}).same
    with pytest.raises(ValueError, match="array 'w' is a object that gives no real numbers"):
        as_array("w", object())


def test_the_page_lists_every_mistake():
    page = (Path(__file__).parents[2] / "docs/check-your-gradient.md").read_text()
    listed = re.findall(r"^\| `(.+)` \| (.+) \|$", page, re.M)
    assert listed == [(m.name, m.says) for m in MISTAKES]
