"""The gradient check: exact where it must be, and it bites."""

import json

import numpy as np
import pytest
from small import STRUCTURES, problem

import ide_ref
from ide_ref.verify import check_gradient, sweep_steps
from ide_ref.verify.gradient import solve_cell


@pytest.mark.parametrize("neuron", [ide_ref.IF(), ide_ref.LIF()], ids=["if", "lif"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_directions_in_the_linear_cell(name, neuron):
    report = check_gradient(*problem(name, neuron), method="cell", n_coordinates=0, n_directions=1, tol=1e-9)
    assert report.passed, report.table()
    assert report.set_aside == 0


def test_central_differences_and_what_they_set_aside():
    fractions = []
    for name in STRUCTURES:
        report = check_gradient(*problem(name), n_coordinates=4)
        assert report.max_direction_error <= 1e-7, report.table()
        assert report.passed, report.table()
        fractions.append(report.set_aside_fraction)
    assert np.median(fractions) < 0.05


def test_without_training():
    assert check_gradient(*problem("mnist-64c5"), method="cell", n_coordinates=2, training=False, tol=1e-9).passed


def test_cell_is_the_equilibrium_while_no_neuron_leaves_its_piece():
    network, params, x, _ = problem("alexnet-f", dropout=0.0)
    base = ide_ref.find_equilibrium(ide_ref.freeze(network, params), x)
    moved = {**params, "hidden2.bias": params["hidden2.bias"] + 1e-5}
    frozen = ide_ref.freeze(network, moved)
    there = ide_ref.find_equilibrium(frozen, x)
    assert np.array_equal(there.pieces, base.pieces)
    np.testing.assert_allclose(solve_cell(frozen, base, x).a, there.a, rtol=0, atol=1e-14)
    # Far away it is the continuation: some rates leave [0, 1].
    far = ide_ref.freeze(network, {**params, "hidden2.bias": params["hidden2.bias"] + 5})
    assert solve_cell(far, base, x).a.max() > 1


@pytest.mark.parametrize("method", ["central", "cell"])
@pytest.mark.parametrize("part", ["input.weight", "feedback.weight", "feedback.alpha", "readout.bias"])
def test_a_wrong_sign_is_found(method, part):
    network, params, x, y = problem("fashion-mnist-400")
    frozen = ide_ref.freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    state = ide_ref.find_equilibrium(frozen, x)
    _, d_logits = ide_ref.cross_entropy(frozen.read_out(state), y)
    wrong = dict(ide_ref.backward(frozen, state, d_logits).gradients)
    wrong[part] = -wrong[part]
    report = check_gradient(network, params, x, y, method=method, n_coordinates=2, gradients=wrong)
    assert not report.passed
    assert {row.parameter for row in report.rows if row.max_rel_error > 1e-3} == {part, "(all)"}
    assert "FAILED" in report.table()


def test_a_clamped_alpha_is_set_aside_or_taken_from_inside():
    args = problem("fashion-mnist-400", alpha=1.0)
    alpha = next(r for r in check_gradient(*args, n_directions=0).rows if r.parameter == "feedback.alpha")
    assert (alpha.checked, alpha.set_aside) == (0, 1)
    sided = check_gradient(*args, n_directions=0, one_sided=True)
    alpha = next(r for r in sided.rows if r.parameter == "feedback.alpha")
    assert (alpha.checked, alpha.one_sided, alpha.set_aside) == (1, 1, 0)
    assert sided.passed, sided.table()


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
    assert sweep.errors["linear cell"].min() < 1e-10
    json.dumps(sweep.to_dict(), allow_nan=False)
    assert "linear cell" in sweep.table()


def test_report_as_json_and_text():
    report = check_gradient(*problem("fashion-mnist-400"), n_coordinates=2, n_directions=1)
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
