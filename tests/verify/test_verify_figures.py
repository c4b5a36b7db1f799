"""The figures of the checks are drawn from their data, kinks and all."""

import pytest
from small import problem

from ide_ref import figures
from ide_ref.verify import explain_over_time, sweep_steps


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_written(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    args = problem("fashion-mnist-400")
    figures.step_sweep(sweep_steps(*args, steps=(1e-1, 1e-3)), title="steps", path=tmp_path / f"steps.{suffix}")
    budgets = explain_over_time(*args, (1, 4))
    figures.budget_over_time(budgets, title="budget", path=tmp_path / f"budget.{suffix}")
    for name in ("steps", "budget"):
        assert (tmp_path / f"{name}.{suffix}").stat().st_size > 5000
    if suffix == "svg":
        figures.budget_over_time(budgets, title="budget", path=tmp_path / "again.svg")
        assert (tmp_path / "budget.svg").stat().st_size == (tmp_path / "again.svg").stat().st_size
