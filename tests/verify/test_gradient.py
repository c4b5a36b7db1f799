"""The gradient check: exact where it must be, and it bites."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import Mock

import numpy as np
import pytest
from small import STRUCTURES, problem

import ide_ref
from ide_ref.synapses import Conv2d
from ide_ref.verify import check_gradient, sweep_steps
from ide_ref.verify.gradient import (
    GradientReport,
    GradientRow,
    Kink,
    _Check,
    _Difference,
    _draw,
    _Point,
    _Problem,
    _Task,
    dot,
    extrapolate,
    nearest_kink,
    observed_order,
    solve_region,
)


def passing(*args, **options):
    """The report of a check that passes."""
    report = check_gradient(*args, **options)
    assert report.passed, report.table()
    return report


def row_of(report, parameter):
    return next(row for row in report.rows if row.parameter == parameter)


def neuron_of(i):
    """Each structure with one of the two neurons in the linear cell, and with the other in central differences."""
    return (ide_ref.IF(), ide_ref.LIF())[i % 2]


@pytest.mark.parametrize(("i", "name"), list(enumerate(STRUCTURES)))
def test_directions_in_the_linear_cell(i, name):
    report = passing(*problem(name, neuron_of(i)), method="cell", n_coordinates=0, n_directions=1, tol=1e-9)
    assert report.set_aside == 0


def test_the_log_counts_the_parameters():
    network, params, x, y = problem("fashion-mnist-400")
    log = io.StringIO()
    check_gradient(network, params, x, y, n_coordinates=1, n_directions=0, log=log)
    n = len(network.trainable)
    assert log.getvalue() == "".join(f"{name}, {k + 1} of {n}\n" for k, name in enumerate(network.trainable))


def test_central_differences_and_what_they_set_aside():
    fractions = []
    for i, name in enumerate(STRUCTURES):
        report = passing(*problem(name, neuron_of(i + 1), seed=i), n_coordinates=1, n_directions=1, tol=1e-7)
        assert report.max_direction_error <= 1e-7
        assert report.unresolved <= 0.05 * report.checked, report.table()
        fractions.append(report.set_aside_fraction)
    assert np.median(fractions) < 0.05


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("bend", [3.0, 0.3, 0.03])
def test_extrapolation_of_a_function_that_bends(order, bend):
    """The singularity of √(bend² + (t − bend)²) is ``bend`` away: where steps are longer, the series diverges."""

    def f(t):
        return np.sqrt(bend**2 + np.longdouble(t - bend) ** 2)

    steps = 0.1 / 2.0 ** np.arange(10)
    quotients = [(f(h) - f(-h)) / (2 * h) if order == 2 else (f(h) - f(0)) / h for h in steps]
    exact = -1 / np.sqrt(2)
    for n in (3, 6, 10):
        value, uncertainty = extrapolate([(quotient, 0.0) for quotient in quotients[:n]], order=order)
        assert abs(value - exact) <= 3 * uncertainty + 1e-15
    assert uncertainty < 1e-9
    _, noisy = extrapolate([*zip(quotients, 1e-3 / steps, strict=True)], order=order)
    assert 1e-2 <= noisy < 1
    assert extrapolate([(quotients[0], 0.0)], order=order) == (float(quotients[0]), np.inf)


@dataclass(frozen=True)
class AsTold(_Problem):
    """A problem whose loss along any direction is a given function of the step."""

    loss_at: Callable[[float], float]

    def fine_loss(self, state):
        return np.longdouble(self.loss_at(0.0))

    def along(self, base, direction, h, method):
        return _Point(np.longdouble(self.loss_at(h)), False, False)


def as_told(loss):
    network, params, x, y = problem("fashion-mnist-400", batch=1, dropout=0.0)
    return AsTold(network, params, x, y, True, 0, loss)


def difference_of(loss):
    check = _Check(as_told(loss), None, {}, "cell", one_sided=False, tol=1e-6, rounding=1e-18)
    return check.difference(_Task((0,), {}, 0.1, 0.1))


@pytest.mark.parametrize("slope", [-0.5, 0.2, 3.0])
def test_two_steps_that_agree_are_not_enough(slope):
    """Orders can agree by chance: a difference is returned when a third step has been seen, not before."""
    steps = []

    def loss(t):
        steps.append(t)
        return slope * t

    found = difference_of(loss)
    assert found.value == pytest.approx(slope, rel=1e-12)
    assert sorted(set(np.abs(steps))) == [0, 0.025, 0.05, 0.1]


@pytest.mark.parametrize("slope", [-0.5, 0.2, 3.0])
def test_two_steps_that_agree_by_chance_are_found_out(slope):
    """The quotients at the first two steps are 1 to the last bit, whatever the slope at 0 is."""

    def loss(t):
        return t + (slope - 1) * t * (1 - (t / 0.1) ** 2) * (1 - (2 * t / 0.1) ** 2)

    found = difference_of(loss)
    assert found.value == pytest.approx(slope, rel=1e-9)


def test_the_rounding_of_a_loss_is_its_standard_deviation():
    rng, size = np.random.default_rng(0), 3e-14
    problem_ = as_told(lambda h: size * rng.normal())
    found = [problem_.rounding(None, "cell") for _ in range(500)]
    assert np.sqrt(np.mean(np.square(found))) / size == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", ["fashion-mnist-400", "mnist-64c5"])
def test_two_samples_normalised_by_themselves(name):
    """Found by ``ide-ref gradcheck digits --samples 2``: where two samples almost agree, their variance is small
    and the normalised drive turns within a step as long as √ε."""
    network, params, x, y = problem(name, batch=2, dropout=0.0)
    x[1] = x[0] + 3e-2 * np.random.default_rng(1).normal(size=x[0].shape)
    report = passing(network, params, x, y, n_coordinates=4, n_directions=1)
    assert report.unresolved == 0, report.table()


def test_strided_feedback_from_a_picture_to_one_of_its_own_shape():
    """A stride and a wide padding together may map a shape to itself."""
    shape = (2, 3, 3)
    network = ide_ref.Network(
        shape,
        (ide_ref.Population("a1", shape),),
        (
            ide_ref.Connection("input", "input", "a1", ide_ref.Dense(shape, shape), bias=True),
            ide_ref.Connection("feedback", "a1", "a1", Conv2d(shape, shape, 2, 2, 2)),
        ),
        ide_ref.Readout("a1", ide_ref.Dense(shape, (2,))),
        ide_ref.IF(1.0),
    )
    rng = np.random.default_rng(0)
    params = network.init(rng)
    params["feedback.weight"] *= 0.5
    args = network, params, rng.normal(0.3, 1, (4, *shape)), np.array([0, 1, 0, 1])
    passing(*args, method="cell", n_coordinates=3, n_directions=1)


def gradients_of(network, params, x, y):
    frozen = ide_ref.freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    state = ide_ref.find_equilibrium(frozen, x)
    return ide_ref.backward(frozen, state, ide_ref.cross_entropy(frozen.read_out(state), y)[1], tol=1e-12).gradients


@pytest.mark.parametrize("method", ["central", "cell"])
@pytest.mark.parametrize("gap", [1e-3, 1e-7])
def test_where_singular_values_almost_coincide(method, gap):
    """Steps longer than the gap see ‖W̄‖ as |h|: symmetric differences then agree on a wrong value."""
    network, params, x, y = problem("fashion-mnist-400", dropout=0.0)
    u, s, vt = np.linalg.svd(params["feedback.weight"])
    s[1] = s[0] * (1 - gap)
    params = {**params, "feedback.weight": (u * s) @ vt}
    report = passing(network, params, x, y, method=method, n_coordinates=3, n_directions=1, one_sided=True)
    row = row_of(report, "feedback.weight")
    assert (row.checked == 3) == (gap == 1e-3), report.table()
    assert row.unresolved == 0
    assert sum(r.set_aside + r.unresolved for r in report.rows if r.parameter.startswith("input")) == 0


def test_what_differences_cannot_resolve_is_said():
    args = problem("fashion-mnist-400", dropout=0.0)
    options = {"n_coordinates": 1, "n_directions": 1, "tol": 1e-14}
    report = check_gradient(*args, **options)
    assert report.unresolved > 0
    assert not report.max_rel_error > 1e-14, report.table()
    assert f"{report.unresolved} unresolved" in report.table()
    # A mistake is far beyond the uncertainty and found all the same.
    wrong = {name: -value if name == "input.weight" else value for name, value in gradients_of(*args).items()}
    report = check_gradient(*args, **options, gradients=wrong)
    assert report.max_rel_error > 1
    assert not report.passed


@pytest.mark.parametrize("n_directions", [0, 1])
def test_a_nan_is_a_failure(n_directions):
    """Also of a single coordinate, before others that are right."""
    args = problem("fashion-mnist-400", dropout=0.0)
    wrong = gradients_of(*args)
    wrong["readout.bias"][0] = np.nan
    report = check_gradient(*args, n_coordinates=5 * (1 - n_directions), n_directions=n_directions, gradients=wrong)
    assert not report.passed
    row = row_of(report, "readout.bias")
    assert np.isnan(row.max_rel_error)
    assert row.worst == (0,)


def test_cell_is_the_equilibrium_while_no_neuron_leaves_its_piece():
    network, params, x, _ = problem("alexnet-f", dropout=0.0)
    base = ide_ref.find_equilibrium(ide_ref.freeze(network, params), x)
    moved = {**params, "hidden2.bias": params["hidden2.bias"] + 1e-5}
    frozen = ide_ref.freeze(network, moved)
    there = ide_ref.find_equilibrium(frozen, x)
    assert np.array_equal(there.branch, base.branch)
    np.testing.assert_allclose(solve_region(frozen, base, x).a, there.a, rtol=0, atol=1e-14)
    # Far away it is the continuation: some rates leave [0, 1].
    far = ide_ref.freeze(network, {**params, "hidden2.bias": params["hidden2.bias"] + 5})
    assert solve_region(far, base, x).a.max() > 1


@pytest.mark.parametrize(("method", "batch_norm"), [("central", True), ("cell", False)])
def test_a_wrong_sign_is_found(method, batch_norm):
    """In any parameter, and in no other."""
    args = problem("fashion-mnist-400", batch_norm=batch_norm)
    gradients = gradients_of(*args)
    options = {"method": method, "n_coordinates": 0, "n_directions": 1}
    passing(*args, gradients=gradients, **options)
    if batch_norm:
        np.testing.assert_allclose(gradients["input.bias"], 0, atol=1e-15)
    names = [name for name in gradients if not (batch_norm and name == "input.bias")]
    # Each parameter's sign is wrong in some of the runs, and in each run another set of signs.
    for digit in range(len(names).bit_length()):
        flipped = {name for i, name in enumerate(names, 1) if i >> digit & 1}
        wrong = {name: -g if name in flipped else g for name, g in gradients.items()}
        report = check_gradient(*args, gradients=wrong, **options)
        assert not report.passed
        assert {row.parameter for row in report.rows if not row.max_rel_error <= 1e-3} == {*flipped, "(all)"}
        for name in flipped:
            assert row_of(report, name).max_rel_error == pytest.approx(2, rel=1e-4)
        assert "FAILED" in report.table()


def test_a_clamped_alpha_is_set_aside_or_taken_from_inside():
    args = problem("fashion-mnist-400", alpha=1.0)
    one = {"n_coordinates": 1, "n_directions": 0}
    alpha = row_of(check_gradient(*args, **one), "feedback.alpha")
    assert (alpha.checked, alpha.set_aside) == (0, 1)
    alpha = row_of(passing(*args, **one, one_sided=True), "feedback.alpha")
    assert (alpha.checked, alpha.one_sided, alpha.set_aside) == (1, 1, 0)


def test_an_alpha_at_its_clamp_does_not_spoil_what_goes_through_all_parameters():
    """Found on a trained network, whose α is 1: every step through all parameters crossed the clamp."""
    args = problem("fashion-mnist-400", alpha=1.0)
    report = passing(*args, n_coordinates=0, n_directions=2)
    whole = row_of(report, "(all)")
    assert (whole.checked, whole.set_aside) == (2, 0), report.table()
    sweep = sweep_steps(*args, steps=(1e-3,))
    assert not sweep.crossed["linear region"].any()
    assert sweep.errors["linear region"][0] < 1e-7
    assert sweep_steps(*args, steps=(1e-3,), parameter="feedback.alpha").crossed["linear region"].all()


def test_a_kink_closer_than_every_step_is_never_averaged_over(monkeypatch):
    monkeypatch.setitem(STRUCTURES, "few neurons", ("4 (F4)", (6,), None))
    network, params, x, y = problem("few neurons", dropout=0.0, batch_norm=False)
    bias = params["input.bias"].copy()
    for _ in range(60):
        p = ide_ref.find_equilibrium(ide_ref.freeze(network, {**params, "input.bias": bias}), x).p[0, 3]
        bias[3] += network.neuron.v_th - 1e-9 - p
    args = network, {**params, "input.bias": bias}, x, y
    options = {"n_coordinates": 4, "n_directions": 0}
    report = passing(*args, **options)
    assert report.kink.distance == pytest.approx(1e-9, rel=1e-3)
    assert (report.kink.sample, report.kink.neuron) == (0, (3,))
    row = row_of(report, "input.bias")
    n = row.set_aside
    assert n >= 1
    assert row.checked == 4 - n
    row = row_of(passing(*args, **options, one_sided=True), "input.bias")
    assert (row.checked, row.one_sided, row.set_aside) == (4, n, 0)
    # In the linear region there is no kink at all.
    assert passing(*args, method="cell", **options, tol=1e-9).set_aside == 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_nearest_kink_is_where_it_was_put(dropout):
    """Neurons that dropout has cut off, whose p is 0, are left out; others whose p is 0 are not."""
    network, params, x, _ = problem("mnist-64c5", dropout=dropout, batch_norm=False)
    frozen = ide_ref.freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    state = ide_ref.find_equilibrium(frozen, x)
    p = ide_ref.network.of_population(network, state.p, "a1")
    assert np.any(p == 0) == (dropout > 0)
    kink = nearest_kink(state)
    distance = np.where(p == 0, np.inf, np.minimum(abs(p), abs(p - network.neuron.v_th)))
    assert kink.distance == distance.min()
    assert (kink.sample, kink.population, *kink.neuron) == (
        int(np.argmin(distance) // distance[0].size), "a1", *np.unravel_index(np.argmin(distance), p.shape)[1:],
    )  # fmt: skip
    if dropout == 0:
        silent = ide_ref.freeze(network, params | {"input.bias": np.zeros(4)})
        assert nearest_kink(ide_ref.find_equilibrium(silent, 0 * x)).distance == 0


def test_the_nearest_of_several_populations():
    network, params, x, _ = problem("alexnet-f", dropout=0.0)
    state = ide_ref.find_equilibrium(ide_ref.freeze(network, params), x)
    p = state.p.copy()
    for population, at, value in (("a2", (1, 2, 0, 1), 1e-9), ("a4", (3, 0, 1, 1), 2 - 1e-10)):
        own = ide_ref.network.of_population(network, np.arange(p.size).reshape(p.shape), population)
        p.flat[own[at]] = value
    kink = nearest_kink(replace(state, p=p))
    assert (kink.sample, kink.population, kink.neuron) == (3, "a4", (0, 1, 1))
    assert kink.distance == pytest.approx(1e-10, rel=1e-5)


def test_sweep_is_a_v():
    args = problem("fashion-mnist-400")
    sweep = sweep_steps(*args, steps=(1e-1, 1e-2, 1e-3, 1e-5, 1e-8))
    for name in ("second order", "fourth order"):
        kept = np.where(sweep.crossed[name], np.inf, sweep.errors[name])
        best = int(np.argmin(kept))
        assert 0 < best < 4
        assert kept[4] > 100 * kept[best]
    assert sweep.errors["linear region"].min() < 1e-10


def test_the_errors_of_a_sweep_are_those_of_its_formulas(monkeypatch):
    """Of a loss that is a polynomial of the step; and every kind of kink, on either side, is told."""
    args = problem("fashion-mnist-400")
    slope = dot(_draw(np.random.default_rng(0), args[1], ("readout.weight",)), gradients_of(*args))
    flags = {0.4: (True, False), -0.3: (True, False), 0.2: (False, True), -0.1: (False, True)}

    def along(self, base, direction, h, method):
        step = np.longdouble(h)
        loss = slope * (step + 0.5 * step**2 + 2 * step**3 - 3 * step**5)
        return _Point(loss, *flags.get(h, (False, False)))

    monkeypatch.setattr(_Problem, "along", along)
    h = np.array([0.4, 0.3, 0.2, 0.1, 0.05])
    sweep = sweep_steps(*args, parameter="readout.weight", steps=tuple(h))
    for name, off in (("second order", 2 * h**2 - 3 * h**4), ("fourth order", 3 * h**4 / 4), ("linear region", 0 * h)):
        np.testing.assert_allclose(sweep.errors[name], abs(off) / np.maximum(1, abs(1 + off)), rtol=1e-6, atol=1e-9)
    assert sweep.crossed["second order"].tolist() == [True] * 4 + [False]
    # Halves of longer steps are steps too.
    assert sweep.crossed["linear region"].tolist() == [True] * 4 + [False]
    lines = sweep.table().splitlines()
    assert lines[0] == "step        second order    fourth order   linear region"
    first = sweep.errors["second order"][0], sweep.errors["second order"][4]
    assert [lines[1][:26], lines[5][:26]] == [f"4.0e-01        {first[0]:.2e}*  ", f"5.0e-02        {first[1]:.2e}   "]
    document = json.loads(json.dumps(sweep.to_dict(), allow_nan=False))
    assert (document["steps"], set(document["errors"])) == (h.tolist(), set(sweep.errors))
    assert document["nearest_kink"]["distance"] == sweep.kink.distance


def test_observed_order_is_that_of_the_shortest_steps_above_rounding():
    steps = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]
    remainders = [1.0, 0.5, 0.25, 0.0625, 0.015625, 0.00390625, 0.00390625]
    for n_clear, order in ((6, 2), (7, None), (3, 1), (2, None)):
        # At thirty times its noise a remainder is not yet clear.
        noise = [r / (31 if k < n_clear else 30) for k, r in enumerate(remainders)]
        found = observed_order(steps, remainders, noise)
        if n_clear == 2:
            assert np.isnan(found)
        elif order is not None:
            assert found == pytest.approx(order)
    logs = np.log2(remainders[3:]), np.log2(steps[3:])
    assert observed_order(steps, remainders, [0.0] * 7) == pytest.approx(np.polyfit(logs[1], logs[0], 1)[0])
    assert np.isnan(observed_order([1.0] * 5, [0.0] * 5, [-1.0] * 5))


def one_neuron(weight, x=0.2):
    """A problem of one neuron a = (weight a + x)/V_th, and its frozen maps with another weight."""
    network = ide_ref.build(
        "1 (F1)", input_shape=(1,), n_classes=2, neuron=ide_ref.IF(), restriction=None, batch_norm=False, dropout=0.0
    )
    theta = network.init(np.random.default_rng(0)) | {
        "input.weight": np.ones((1, 1)), "input.bias": np.zeros(1), "feedback.weight": np.full((1, 1), weight),
    }  # fmt: skip
    check = _Problem(network, theta, np.full((1, 1), x), np.array([0]), False, 0)
    return check, lambda other: check.freeze(theta | {"feedback.weight": np.full((1, 1), other)})


def test_a_region_without_an_equilibrium_is_as_good_as_a_kink():
    v_th = ide_ref.IF().v_th
    check, frozen = one_neuron(v_th / 2)
    base = check.solve(frozen(v_th / 2))
    point = check.along(base, {"feedback.weight": np.ones((1, 1))}, v_th / 2, "cell")
    assert np.isnan(point.loss)
    assert point.crossed
    with pytest.raises(ide_ref.NotConverged, match=r"linear region: residual .* the system is nearly singular"):
        solve_region(frozen(v_th), base, check.x)
    # One step further a is negative, and right: 0.2/v_th / (1 - w/v_th).
    region = solve_region(frozen(2 * v_th), base, check.x)
    np.testing.assert_allclose(region.a, -0.2 / v_th, rtol=1e-14)
    assert region.residual.max() < 1e-15


def test_an_equilibrium_that_is_slow_to_reach_is_reached():
    v_th = ide_ref.IF().v_th
    check, frozen = one_neuron(0.5 * v_th, x=1e-3 * v_th)
    slow = check.solve(frozen(0.99 * v_th), np.full((1, 1), 0.5))
    fast = check.solve(frozen(0.5 * v_th))
    # Below the kink at 1, and to the last bits where few sweeps reach them.
    assert slow.status == "converged"
    np.testing.assert_allclose(slow.a, 0.1, rtol=0, atol=1e-13 * (1 + 0.1) / 0.01)
    np.testing.assert_allclose(fast.a, 2e-3, rtol=0, atol=1e-15 * (1 + 2e-3) / 0.5)


def test_how_differences_are_judged():
    """Uncertain ones again with longer steps; what stays uncertain is unresolved unless it is certainly wrong."""
    found = {"w": np.array([1.0, 2.0, 4.0, 8.0, 16.0, -32.0]), "other": np.full(3, 100.0)}
    sure, unsure, lost = 1e-9, 1e-3, 1e-2
    answers = {
        (0, 1): _Difference(1.0 - 3e-7, sure, False),
        (1, 1): _Difference(2.1, lost, False), (1, 8): None, (1, 64): _Difference(2.0, 2 * sure, True),
        (2, 1): None,
        (3, 1): _Difference(8.01, unsure, True), (3, 8): _Difference(9.0, lost, True), (3, 64): None,
        (4, 1): _Difference(16.5, lost, True), (4, 8): _Difference(16.4, unsure, False), (4, 64): None,
        (5, 1): _Difference(-32.0, 1e-6 * 32, False),
    }  # fmt: skip
    check = _Check(None, None, found, "cell", False, 1e-6, 0.0)
    object.__setattr__(check, "difference", lambda task: answers.pop((task.where[0], task.h)))
    tasks = [_Task((k,), {"w": np.eye(6)[k]}, 1, 1e-3) for k in range(6)]
    row = check.row("w", "coordinates", tasks)
    assert not answers
    counts = (row.checked, row.set_aside, row.unresolved, row.one_sided)
    assert (row.parameter, row.kind, row.size, row.largest, counts) == ("w", "coordinates", 6, 32.0, (4, 1, 1, 1))
    assert (row.worst, row.max_rel_error) == ((4,), pytest.approx(0.4 / 16.4))
    assert row.uncertainty == pytest.approx(unsure / 16.4)
    answers[0, 1] = None
    row = check.row("(all)", "directions", tasks[:1])
    assert (row.checked, row.set_aside, row.size, row.largest, row.worst) == (0, 1, 9, 100.0, ())
    assert np.isnan([row.max_rel_error, row.uncertainty]).all()
    # Against a derivative of nothing, what counts is the least scale.
    answers[0, 1] = _Difference(2e-9, sure, False)
    check.found["w"][0] = 0.0
    assert check.row("w", "coordinates", tasks[:1]).max_rel_error == pytest.approx(2e-6)


def test_what_is_zero_to_rounding_is_said_to_be_and_not_unresolved():
    """A gradient of rounding beside a difference of rounding; a larger one, or a larger doubt, is unresolved."""
    found = {"w": np.array([7e-20, 3e-14, 0.0, 0.0]), "other": np.ones(1)}
    differences = [(3e-11, 2e-11), (3e-11, 2e-11), (3e-4, 2e-4), (1e-6, 1e-9)]
    answers = {k: _Difference(*pair, False) for k, pair in enumerate(differences)}
    check = _Check(None, None, found, "cell", False, 1e-7, 0.0)
    object.__setattr__(check, "difference", lambda task: answers[task.where[0]])
    row = check.row("w", "coordinates", [_Task((k,), {"w": np.eye(4)[k]}, 1, 1e-5) for k in range(4)])
    assert (row.zero, row.unresolved, row.checked, row.worst) == (1, 2, 1, (3,))
    report = GradientReport((row,), "cell", 1e-7, 1.5, 1e-13, 2e-12, 3e-15, 4e-14, 0.5, Kink(1e-3, 2, "a1", (1, 2)))
    lines = report.table().splitlines()
    assert lines[1].endswith("  <- at (3,)  1 zero to rounding")
    assert "1 zero to rounding, the gradient and the difference both: not compared" in lines
    assert (report.to_dict()["zero"], report.to_dict()["unresolved"]) == (1, 2)
    assert replace(report, rows=(replace(row, set_aside=1),)).set_aside_fraction == 0.2


def test_the_numbers_of_a_report_are_those_of_its_equilibrium_and_its_solve(monkeypatch):
    seen = []

    def recorded(frozen, state, d_logits, **options):
        seen.append((state, ide_ref.backward(frozen, state, d_logits, **options)))
        return seen[-1][1]

    monkeypatch.setattr("ide_ref.verify.gradient.backward", recorded)
    args = problem("fashion-mnist-400")
    report = check_gradient(*args, n_coordinates=1, n_directions=1)
    ((state, back),) = seen
    assert report.loss == ide_ref.cross_entropy(ide_ref.read_out(state.frozen, state), args[3])[0]
    # Of the worst sample.
    for found, each in (
        (report.beta_residual, back.solution.relative),
        (report.certificate, back.certificate),
        (report.equilibrium_residual, state.residual),
        (report.equilibrium_certificate, state.certificate),
    ):
        assert found == max(each) > min(each)
    assert max(state.residual) < 1e-14
    assert report.contraction == back.contraction
    for row in report.rows:
        parts = back.gradients.values() if row.parameter == "(all)" else [back.gradients[row.parameter]]
        assert row.size == sum(part.size for part in parts)
        assert row.largest == pytest.approx(max(np.abs(part).max() for part in parts), rel=1e-9, abs=1e-15)
        assert row.max_rel_error <= 1e-7
        assert (row.checked, row.set_aside, row.unresolved, row.one_sided) == (1, 0, 0, 0)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    told = [document[name] for name in ("passed", "checked", "set_aside", "set_aside_fraction", "unresolved")]
    assert told == [True, len(report.rows), 0, 0, 0]
    assert document["nearest_kink"]["distance"] == report.kink.distance
    assert [row["kind"] for row in document["parameters"]] == ["coordinates", "directions"] * len(args[0].trainable) + [
        "directions"
    ]


def test_the_text_of_a_report():
    row = GradientRow("w", "coordinates", 12, 3, 1, 0, 2, 2e-9, 1e-11, (3,), 0.5)
    wrong = replace(row, parameter="a long name", kind="directions", set_aside=0, max_rel_error=0.1, uncertainty=1e-3)
    empty = replace(row, parameter="none", checked=0, one_sided=0, max_rel_error=np.nan, uncertainty=np.nan)
    kink = Kink(1e-3, 2, "a1", (1, 2))
    report = GradientReport((row,), "cell", 1e-9 * 2, 1.5, 1e-13, 2e-12, 3e-15, 4e-14, 0.5, kink)
    head = "      size  along        checked  set aside  unresolved  largest |g|  max rel. error  uncertainty"
    after = [
        "loss 1.500000; gamma 0.5000; residual of (BETA) 1.0e-13, certified error of beta 2.0e-12",
        "residual of the equilibrium 3.0e-15, certified error 4.0e-14",
        "nearest kink 1.0e-03 away in potential: sample 2, a1, neuron (1, 2)",
    ]
    assert report.table().splitlines() == [
        "parameter" + head,
        "w                12  coordinates        3          1           0    5.000e-01        2.00e-09      1.0e-11",
        "3 differences checked by method 'cell' (2 one-sided), 1 set aside for kinks (25.0 %)",
        "largest relative error 2.00e-09, tolerance 2e-09: passed",
        *after,
    ]
    assert np.isnan(report.max_direction_error)
    assert report.set_aside_fraction == 0.25
    report = replace(
        report, rows=(row, wrong, empty, replace(empty, unresolved=1)), orders=(1.0, 2.01), why_not="so it is"
    )
    lines = report.table().splitlines()
    assert lines[0] == "parameter  " + head
    assert lines[2].endswith("        1.00e-01      1.0e-03  <- at (3,)")
    assert lines[3].endswith("             nan          nan")
    assert lines[5].endswith("(4 one-sided), 3 set aside for kinks (30.0 %)")
    assert lines[6] == "largest relative error 1.00e-01, tolerance 2e-09: FAILED"
    assert lines[7].startswith("orders of the Taylor remainders without the gradient 1.00, with it 2.01 (")
    assert lines[8].startswith("1 unresolved: rounding, or a loss that bends sharply")
    assert lines[10:] == [*after[:2], "no error is certified: so it is", after[2]]
    assert max(map(len, lines)) <= 120
    assert str(report) == report.table()
    assert repr(report) == "GradientReport(FAILED, 6 differences, worst relative error 1.0e-01)"
    assert (report.max_rel_error, report.max_direction_error, report.uncertainty) == (0.1, 0.1, 1e-3)
    assert not replace(report, rows=(empty,)).passed


@pytest.mark.parametrize(("method", "longest"), [("central", 0.02), ("cell", 2.0), ("cell", 0.5)])
def test_the_differences_that_are_asked_for(method, longest, monkeypatch):
    """Along unit vectors with steps in proportion to the coordinate, along directions of length 1 with a quarter."""
    tasks = []
    monkeypatch.setattr(_Check, "difference", lambda self, task: tasks.append(task))
    monkeypatch.setattr(_Check, "orders", lambda self, task: (1.0, 2.0))
    args = problem("fashion-mnist-400")
    step = None if longest in (0.02, 2.0) else longest
    right = gradients_of(*args)
    report = check_gradient(*args, method=method, n_coordinates=6, n_directions=2, step=step, gradients=right)
    assert report.orders == (1.0, 2.0)
    assert {(row.checked, row.unresolved) for row in report.rows} == {(0, 0)}
    overall = max(np.abs(g).max() for g in right.values())
    for name in args[0].trainable:
        alone = [task for task in tasks if [*task.direction] == [name]]
        coordinates, directions = alone[:-2], alone[-2:]
        assert len(coordinates) == min(6, right[name].size)
        assert [task.where for task in coordinates] == sorted({task.where for task in coordinates})
        for task in coordinates:
            unit = np.zeros_like(right[name])
            unit[task.where] = 1
            np.testing.assert_array_equal(task.direction[name], unit)
            assert task.h == longest * max(0.1, abs(args[1][name][task.where]))
            assert task.floor == pytest.approx(max(1e-3 * np.abs(right[name]).max(), 1e-5 * overall))
        for k, task in enumerate(directions):
            assert (task.where, task.h) == ((k,), longest / 4)
            assert np.linalg.norm(task.direction[name]) == pytest.approx(1)
            assert task.floor == pytest.approx(max(1e-3 * np.linalg.norm(right[name]), 1e-5 * overall))
    together = [task for task in tasks if len(task.direction) > 1]
    assert [set(task.direction) for task in together] == [set(args[0].trainable)] * 2
    assert not np.array_equal(together[0].direction["readout.bias"], together[1].direction["readout.bias"])


def test_a_direction_moves_each_parameter_in_proportion_to_its_size():
    theta = {"small": np.full(4000, 1e-3), "large": np.full((40, 100), -3.0), "other": np.ones(3)}
    drawn = _draw(np.random.default_rng(0), theta, ("small", "large"))
    assert set(drawn) == {"small", "large"}
    assert sum(np.sum(d**2) for d in drawn.values()) == pytest.approx(1)
    ratio = np.linalg.norm(drawn["large"]) / np.linalg.norm(drawn["small"])
    assert ratio == pytest.approx(3 / 0.1, rel=0.05)


def test_the_fine_loss_of_samples_far_apart():
    logits = np.array([[1000.0, 990.0, 0.0], [-2000.0, 0.5, 0.25]])
    check = _Problem(None, {}, None, np.array([1, 2]), True, 0)
    state = Mock(**{"frozen.read_out.return_value": logits})
    expected = (np.log1p(np.exp(np.longdouble(-10))) + 10 + np.log1p(np.exp(np.longdouble(-0.25))) + 0.25) / 2
    assert abs(check.fine_loss(state) - expected) <= 8 * np.finfo(np.longdouble).eps * expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "forward"}, "method is 'forward'; expected 'central' or 'cell'"),
        ({"n_coordinates": -1}, "n_coordinates is -1"),
        ({"n_coordinates": 0, "n_directions": 0}, "both 0; expected something to check"),
        ({"step": 0.0}, "step is 0.0; expected a positive number"),
        ({"tol": float("nan")}, "tol is nan; expected a positive number"),
        ({"gradients": {}}, "gradients has nothing for 'input.weight'"),
        ({"gradients": {"input.weight": np.zeros(3)}}, r"gradient of 'input.weight' has shape \(3,\)"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        check_gradient(*problem("fashion-mnist-400"), **options)


def test_unknown_parameter_of_a_sweep():
    with pytest.raises(ValueError, match=r"parameter is 'W'; expected one of input\.weight"):
        sweep_steps(*problem("fashion-mnist-400"), parameter="W")


@pytest.mark.parametrize("method", ["central", "cell"])
@pytest.mark.parametrize("name", ["fashion-mnist-400", "mnist-64c5"])
def test_remainders_fall_with_the_second_order_of_a_right_gradient_and_the_first_of_another(name, method):
    network, params, x, y = problem(name)
    options = {"method": method, "n_coordinates": 0, "n_directions": 1}
    right = check_gradient(network, params, x, y, **options)
    assert right.orders[0] == pytest.approx(1.0, abs=0.1)
    assert right.orders[1] == pytest.approx(2.0, abs=0.2)
    assert "with it 2." in right.table() or "with it 1.9" in right.table()
    wrong = {name: 1.001 * g for name, g in gradients_of(network, params, x, y).items()}
    off = check_gradient(network, params, x, y, gradients=wrong, **options)
    assert off.orders[1] == pytest.approx(1.0, abs=0.1)
    assert off.to_dict()["orders"] == list(off.orders)


def test_differences_are_a_hundred_times_as_certain_as_they_are_judged():
    """Steps of e^h are halved until they are, and no longer."""
    steps = [0.5 / 2**k for k in range(7)]
    quotients = [(np.exp(np.longdouble(h)) - np.exp(np.longdouble(-h))) / (2 * h) for h in steps]
    for n in (3, 4, 5):
        value, uncertainty = extrapolate([(quotient, 0.0) for quotient in quotients[:n]], order=2)
        for share, enough in ((1.01, True), (0.99, False)):
            problem = Mock(
                fine_loss=lambda state: np.longdouble(1),
                along=Mock(side_effect=lambda state, d, h, method: _Point(np.exp(np.longdouble(h)), False, False)),
            )
            check = _Check(problem, None, {}, "cell", False, share * 100 * uncertainty / value, 0.0)
            found = check.difference(_Task((), {}, steps[0], 1e-6))
            assert problem.along.call_count == 2 * (n if enough else n + 1)
            assert found.value == pytest.approx(1.0, abs=uncertainty)
