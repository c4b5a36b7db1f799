"""The gradient check: exact where it must be, and it bites."""

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
from ide_ref.verify.gradient import _Check, _Point, _Problem, _Task, extrapolate, solve_region


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
    assert extrapolate([(quotients[0], 0.0)], order=order)[1] == np.inf


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


def test_nearest_kink_is_where_it_was_put():
    network, params, x, y = problem("mnist-64c5", dropout=0.0, batch_norm=False)
    state = ide_ref.find_equilibrium(ide_ref.freeze(network, params), x)
    p = ide_ref.network.of_population(network, state.p, "a1")
    kink = check_gradient(network, params, x, y, n_coordinates=1, n_directions=0).kink
    distance = np.minimum(abs(p), abs(p - network.neuron.v_th))
    assert kink.distance == pytest.approx(distance.min())
    assert (kink.sample, *kink.neuron) == np.unravel_index(distance.argmin(), p.shape)


def test_sweep_is_a_v():
    args = problem("fashion-mnist-400")
    sweep = sweep_steps(*args, steps=(1e-1, 1e-2, 1e-3, 1e-5, 1e-8))
    for name in ("second order", "fourth order"):
        kept = np.where(sweep.crossed[name], np.inf, sweep.errors[name])
        best = int(np.argmin(kept))
        assert 0 < best < 4
        assert kept[4] > 100 * kept[best]
    assert sweep.errors["linear region"].min() < 1e-10
    json.dumps(sweep.to_dict(), allow_nan=False)
    assert "linear region" in sweep.table()


def test_report_as_json_and_text():
    report = check_gradient(*problem("fashion-mnist-400"), n_coordinates=1, n_directions=1)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["passed"] is True
    assert document["nearest_kink"]["distance"] == report.kink.distance
    assert {row["kind"] for row in document["parameters"]} == {"coordinates", "directions"}
    assert "(all)" in report.table()
    assert "nearest kink" in report.table()


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


def test_an_error_of_the_tolerance_itself_passes():
    report = check_gradient(*problem("fashion-mnist-400"), n_coordinates=1, n_directions=0)
    assert replace(report, tol=report.max_rel_error).passed
    assert not replace(report, tol=report.max_rel_error * (1 - 1e-9)).passed


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
