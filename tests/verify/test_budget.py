"""The error budget adds up, and each part is where it belongs."""

import json

import numpy as np
import pytest
from small import STRUCTURES, problem

import ide_ref
from ide_ref.profiles import Profile, authors
from ide_ref.verify import explain_gradient, explain_over_time, table_over_time


def training_gradient(args, n_steps, profile=None, **options):
    network, params, x, y = args
    profile = profile or Profile()
    frozen = ide_ref.freeze(network, params, x, training=True, rng=np.random.default_rng(0), profile=profile)
    rates = ide_ref.simulate(frozen, x, n_steps)
    _, d_logits = ide_ref.cross_entropy(ide_ref.read_out(frozen, rates), y)
    return ide_ref.backward(frozen, rates, d_logits, allow_unconverged=True, **options).gradients


@pytest.mark.parametrize("profile", ["paper", "authors"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_parts_add_up_to_the_training_gradient(name, profile):
    args = problem(name, ide_ref.LIF(), restriction=ide_ref.Restriction(norm="kernel"), batch=6)
    made = Profile() if profile == "paper" else authors(len(args[0].populations))
    budget = explain_gradient(*args, 6, tol=1e-3, profile=made)
    assert budget.closure <= 1e-10
    direct = training_gradient(args, 6, made, solver="fixed_point", tol=1e-3)
    for key, value in direct.items():
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
    coarse = explain_gradient(*args, 4000, solver="halved", tol=1e-12)
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
