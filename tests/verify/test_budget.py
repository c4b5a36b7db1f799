"""The error budget adds up, and each part is where it belongs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small import STRUCTURES, problem, rollout

import ide_ref
from ide_ref import equations
from ide_ref.authors import Profile, authors, edited
from ide_ref.verify import Budget, explain_gradient, explain_over_time, table_over_time
from ide_ref.verify.budget import _part
from ide_ref.verify.specification import specified


@pytest.mark.parametrize("profile", ["paper", "authors"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_parts_add_up_to_the_training_gradient(name, profile):
    args = problem(name, ide_ref.LIF(), restriction=ide_ref.Restriction(norm="kernel"), batch=6)
    made = Profile() if profile == "paper" else authors(len(args[0].populations))
    # One solve stops at its tolerance, the other after two iterations.
    solver = {"tol": 1e-3} if profile == "paper" else {"max_iter": 2}
    budget = explain_gradient(*args, 6, profile=made, **solver)
    assert budget.closure <= 1e-10
    quirks = [
        f"profile: {quirk}" for quirk in ("long_average", "one_power_step", "clamp_alpha") if getattr(made, quirk)
    ]
    normed = made.batch_statistics_in_gradient or made.unbiased_spike_statistics or made.batch_statistics_in_beta
    later = ["batch norm"] * normed + ["profile: sweep_first"] * made.sweep_first
    names = [part.name for part in budget.parts]
    assert names == ["restriction norm", *quirks, "finite T", "masks", *later, "solver"]
    trained = rollout(edited(args[0], made), *args[1:])
    direct = ide_ref.backward(*trained, solver="fixed_point", allow_unconverged=True, **({"tol": 1e-4} | solver))
    for key, value in direct.gradients.items():
        whole = budget.exact[key] + sum(part.gradients[key] for part in budget.parts)
        scale = max(np.linalg.norm(value), 1e-3)
        assert np.linalg.norm(whole - value) <= 1e-10 * scale, key
    json.dumps(budget.to_dict(), allow_nan=False)


def test_each_part_vanishes_without_its_cause():
    args = problem("mnist-64c5", ide_ref.IF())
    budget = explain_gradient(*args, 4000, solver="gmres", tol=1e-12)
    assert budget.part("restriction norm").norm == 0  # operator norm already
    assert budget.part("solver").norm < 1e-10
    assert budget.part("finite T").norm < 2e-2
    assert {part.name for part in budget.parts} == {"restriction norm", "finite T", "masks", "solver"}
    coarse = explain_gradient(*args, 4000, solver="damped", tol=1e-12)
    assert coarse.part("solver").norm > 0.05
    kernel = problem("mnist-64c5", ide_ref.IF(), restriction=ide_ref.Restriction(norm="kernel"))
    assert explain_gradient(*kernel, 10).part("restriction norm").norm > 1e-3


def test_exact_gradient_is_that_of_the_equilibrium():
    args = problem("fashion-mnist-400")
    budget = explain_gradient(*args, 5)
    report = ide_ref.verify.check_gradient(*args, method="cell", gradients=budget.exact, n_coordinates=0, tol=1e-9)
    assert report.passed, report.table()


def test_finite_time_falls_over_time():
    args = problem("fashion-mnist-400", ide_ref.IF(), dropout=0.0)
    budgets = explain_over_time(*args, (5, 50, 500))
    norms = [budget.part("finite T").norm for budget in budgets]
    assert norms[0] > 3 * norms[1] > 9 * norms[2]
    for budget in budgets:
        # (CERT) holds for the rates too.
        assert budget.distance <= budget.rates_certificate
    cosines = [budget.cosine for budget in budgets]
    assert cosines[0] < cosines[1] < cosines[2] < 1
    assert cosines[2] > 0.999
    lines = table_over_time(budgets).splitlines()
    assert lines[0].split()[:6] == ["T", "finite", "T", "masks", "solver", "whole"]
    for line, budget, norm in zip(lines[1:4], budgets, norms, strict=True):
        cells = line.split()
        assert cells[0] == str(budget.n_steps)
        assert cells[1] == f"{norm:.1e}"
        assert cells[5] == f"{budget.cosine:.4f}"
    assert "the parts add up to" in lines[4]
    with pytest.raises(ValueError, match="budgets is empty"):
        table_over_time(())


def test_parts_are_told_by_their_norms_and_cosines():
    """Of a budget by hand: each parameter's against that parameter's exact gradient, and all together."""
    exact = {"a": np.array([3.0, 4.0]), "b": np.zeros(2), "c": np.array(12.0)}
    training = {"a": np.array([3.0, 1.0]), "b": np.zeros(2), "c": np.array(6.0)}
    first = {"a": np.array([0.0, -3.0]), "b": np.ones(2), "c": np.array(0.0)}
    second = {"a": np.zeros(2), "b": -np.ones(2), "c": np.array(-6.0)}
    gradients = ("first", first), ("some other", second), ("none", {name: 0 * g for name, g in exact.items()})
    parts = tuple(_part(name, f"says {name}", g, exact) for name, g in gradients)
    budget = Budget(exact, training, parts, 7, 0.5, 1e-2, 2e-3, 3e-4, 4e-5, 0.25)
    part = budget.part("first")
    assert part.norms == {"a": 3 / 5, "b": np.inf, "c": 0}
    assert (part.cosines["a"], part.norm) == (pytest.approx(-12 / 15), pytest.approx(np.sqrt(11) / 13))
    assert part.cosine == pytest.approx(-12 / (13 * np.sqrt(11)))
    assert np.isnan([part.cosines["b"], part.cosines["c"], budget.part("none").cosine]).all()
    assert budget.part("none").norms == dict.fromkeys("abc", 0)
    whole = budget.total
    assert whole.gradients["a"].tolist() == [0, -3]
    assert (whole.norm, whole.cosine) == (pytest.approx(np.sqrt(45) / 13), pytest.approx(-84 / (13 * np.sqrt(45))))
    assert budget.cosine == pytest.approx(85 / (13 * np.sqrt(46)))
    assert budget.closure == 0
    assert replace(budget, parts=parts[:1]).closure == pytest.approx(np.sqrt(38) / 13)
    nothing = {name: np.zeros_like(g) for name, g in exact.items()}
    assert replace(budget, exact=nothing, training=nothing, parts=()).closure == 0
    assert budget.table().splitlines() == [
        "part             norm    cosine  largest in",
        "first         2.6e-01   -0.2783  a (6.0e-01)",
        "some other    4.7e-01   -0.8985  c (5.0e-01)",
        "none          0.0e+00       nan  -",
        "whole error   5.2e-01   -0.9632  c (5.0e-01)",
        "T = 7: |a[T] - a*| 5.00e-01 (certified 2.00e-03); gamma 0.2500; cosine of the training gradient with the "
        "exact one 0.9640; the parts add up to 0.0e+00",
        "certified errors: a* 1.0e-02, exact beta 3.0e-04, beta as trained 4.0e-05",
    ]
    document = json.loads(json.dumps(budget.to_dict(), allow_nan=False))
    told = {"equilibrium": 1e-2, "rates": 2e-3, "exact_beta": 3e-4, "solver_beta": 4e-5}
    assert (document["certificates"], document["n_steps"], document["contraction"]) == (told, 7, 0.25)
    assert [part["name"] for part in document["parts"]] == ["first", "some other", "none", "whole error"]
    assert set(document["parts"][0]) == {"name", "says", "norms", "cosines", "norm", "cosine"}


def test_the_distance_is_that_of_the_farthest_sample():
    args = problem("fashion-mnist-400", dropout=0.0)
    network, params, x, _ = args
    frozen = ide_ref.freeze(network, params, x, training=True)
    for n_steps in (1, 7, 40):
        gap = ide_ref.simulate(frozen, x, n_steps).a - ide_ref.find_equilibrium(frozen, x).a
        expected = np.linalg.norm(gap, axis=1).max()
        assert explain_gradient(*args, n_steps).distance == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(2))
def test_finite_time_moves_the_rates_and_then_the_masks(seed):
    """The formula of one layer with rates and masks of either state: β by masks at a*, outer products at a[T]."""
    network, params, x, y = problem("fashion-mnist-400", seed=seed, dropout=0.0, batch_norm=False, restriction=None)
    params = params | {"feedback.weight": 0.5 * params["feedback.weight"]}
    frozen = ide_ref.freeze(network, params)
    star, rates = ide_ref.find_equilibrium(frozen, x).a, ide_ref.simulate(frozen, x, 6).a
    spec = specified(frozen, x, 6)
    _, W_o, b_o = spec.readout

    def gradient(of_masks, of_rates):
        _, d_logits = equations.loss(equations.read_out(W_o, b_o, of_rates), y)
        m = equations.mask(spec.net, [of_masks], x)
        delta = m[0] * equations.beta(spec.net, m, [d_logits @ W_o])[0] / spec.net.v_th
        return {
            "feedback.weight": equations.hebb(delta, of_rates),
            "input.weight": equations.hebb(delta, x),
            "input.bias": delta.sum(axis=0),
            "readout.weight": equations.hebb(d_logits, of_rates),
            "readout.bias": d_logits.sum(axis=0),
        }

    exact, moved, there = gradient(star, star), gradient(star, rates), gradient(rates, rates)
    budget = explain_gradient(network, params, x, y, 6, solver="gmres", tol=1e-12)
    assert set(budget.exact) == set(exact)
    assert budget.part("masks").norm > 1e-3
    for name in exact:
        np.testing.assert_allclose(budget.exact[name], exact[name], rtol=0, atol=1e-11)
        finite, masks = (budget.part(part).gradients[name] for part in ("finite T", "masks"))
        np.testing.assert_allclose(finite, moved[name] - exact[name], rtol=0, atol=1e-11, err_msg=name)
        np.testing.assert_allclose(masks, there[name] - moved[name], rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("status", ["converged", "stagnated"])
def test_all_solves_but_trainings_are_taken_to_rounding(status, monkeypatch):
    """Of the operator's norm, the network's, and at a[T]; under a quirk there may be no solution, and that is said."""
    seen = []

    def recorded(*args, **options):
        seen.append(options)
        back = ide_ref.backward(*args, **options)
        relative = np.array([1e-3, 0.25, 1e-3, 1e-3])
        return replace(back, solution=replace(back.solution, status=status, relative=relative))

    monkeypatch.setattr("ide_ref.verify.budget.backward", recorded)
    args = problem("fashion-mnist-400")
    budget = explain_gradient(*args, 5, profile=Profile(sweep_first=True), solver="anderson", tol=1e-2)
    exact = {"solver": "gmres", "tol": 1e-12, "max_iter": 5000, "allow_unconverged": False}
    training = {"solver": "anderson", "tol": 1e-2, "max_iter": 200, "allow_unconverged": True}
    assert seen == [exact, exact, exact, exact | {"allow_unconverged": True}, training]
    without = "; (BETA) has no solution within reach: relative residual 2.5e-01" if status == "stagnated" else ""
    assert budget.part("profile: sweep_first").says == "linearised one sweep further on" + without


def test_a_spike_train_is_explained_by_its_first_frames():
    network, params, _, y = problem("fashion-mnist-400")
    x = 1.0 * (np.random.default_rng(0).random((4, 6, *network.input_shape)) < 0.3)
    budgets = explain_over_time(network, params, x, y, (1, 4))
    for n_steps, budget in zip((1, 4), budgets, strict=True):
        alone = explain_gradient(network, params, x[:, :n_steps], y, n_steps)
        assert budget.n_steps == n_steps
        assert budget.to_dict() == alone.to_dict()


def test_batch_norm_and_sweep_have_their_parts():
    args = problem("alexnet-f", batch=6)
    both = Profile(batch_statistics_in_beta=True, sweep_first=True)
    budget = explain_gradient(*args, 6, profile=both)
    assert budget.part("batch norm").norm > 1e-3
    assert budget.part("profile: sweep_first").norm > 0
    assert "batch norm" in budget.table()
    assert "the parts add up to" in budget.table()


def test_wrong_steps():
    args = problem("nmnist-64c5")
    with pytest.raises(ValueError, match=r"n_steps is \(3, 7\); expected numbers from 1 to 6, the frames of x"):
        explain_over_time(*args, (3, 7))
    with pytest.raises(ValueError, match=r"n_steps is \(0,\); expected numbers of at least 1"):
        explain_over_time(*problem("mnist-64c5"), (0,))


def test_certificates_of_the_budget_are_those_of_its_solves():
    args = problem("fashion-mnist-400", ide_ref.IF(), dropout=0.0)
    budget = explain_gradient(*args, 5, solver="fixed_point", tol=1e-2)
    there = rollout(*args, n_steps=5)
    back = ide_ref.backward(*there, tol=1e-2)
    assert budget.solver_certificate == back.certificate.max()
    exact = ide_ref.backward(*there, solver="direct").beta
    assert np.linalg.norm(back.beta - exact, axis=1).max() <= budget.solver_certificate
