"""Defaults in single precision: what the library calls ask for is what float32 can give."""

from dataclasses import replace

import numpy as np
import pytest

import ide_ref
from ide_ref import cross_entropy, error_bound, find_equilibrium, freeze, presets, read_out, simulate
from ide_ref.equilibrium import TOLERANCE, linearise
from ide_ref.implicit import backward, solve_beta
from ide_ref.solvers import solve
from ide_ref.training import checkpoint
from ide_ref.training.loop import begin
from ide_ref.verify import small


@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("name", presets.names())
def test_a_checkpoint_is_loaded_frozen_and_taken_apart_as_written(name, neuron, tmp_path):
    preset = small.shrink(presets.load(name, neuron=neuron, n_steps=8))
    checkpoint.save(tmp_path / "c.safetensors", begin(preset, 0))
    _, x, y = small.draw(preset, 4)
    state = checkpoint.load(tmp_path / "c.safetensors")
    frozen = freeze(state.preset.network, state.params)
    assert frozen.dtype == np.float32
    rates = simulate(frozen, x, 8, record=True)
    star = x if preset.recipe.input == "static" else frozen.mean_input(frozen.check_input(x))
    for method in ("iterate", "anderson", "newton"):
        found = find_equilibrium(frozen, star, method=method)
        assert found.converged
        assert found.a.dtype == np.float32
        exact = find_equilibrium(freeze(state.preset.network, in_float64(state.params)), star)
        assert np.abs(found.a - exact.a).max() <= 1e-5
        assert np.all(np.linalg.norm(found.a - exact.a, axis=1) <= np.linalg.norm(found.errors, axis=1) * 1.001)
    assert error_bound(frozen, x, rates).violation <= 0
    _, d_logits = cross_entropy(read_out(frozen, rates), y)
    for solver in ("fixed_point", "anderson", "broyden", "gmres", "scipy_gmres", "direct"):
        result = backward(frozen, rates, d_logits, solver=solver)
        assert result.solution.converged
        assert result.solution.tol == 1e-5


def in_float64(params):
    return {name: value.astype(np.float64) for name, value in params.items()}


@pytest.fixture
def frozen():
    network = ide_ref.build("4 (F4)", input_shape=(3,), n_classes=2, neuron=ide_ref.IF(1.0))
    return freeze(network, network.init(np.random.default_rng(0), dtype=np.float32))


def test_a_tolerance_below_the_grain_of_the_dtype_is_refused_with_that_reason(frozen):
    x = np.full((1, 3), 0.5)
    says = r"tol is 1e-13; rounding of float32 keeps residuals above 2e-07: ask for more, or compute in float64"
    with pytest.raises(ValueError, match=says):
        find_equilibrium(frozen, x, tol=1e-13)
    rates = simulate(frozen, x, 5)
    with pytest.raises(ValueError, match=says):
        backward(frozen, rates, np.ones((1, 2)), tol=1e-13)
    # Who takes what there is may ask for anything.
    assert find_equilibrium(frozen, x, tol=1e-13, allow_unconverged=True).a.dtype == np.float32
    assert backward(frozen, rates, np.ones((1, 2)), tol=1e-13, allow_unconverged=True).solution.tol == 1e-13
    assert solve("gmres", lambda v: 0 * v, np.ones((1, 3), np.float32), tol=1e-13).status == "lost to rounding"


def test_a_tolerance_that_rounding_alone_exceeds_is_blamed_on_rounding(frozen):
    """Above the grain, but below what sums of many terms leave."""
    strong = replace(frozen.maps[-1], taps=0.99 * np.eye(4, dtype=np.float32)[None])
    frozen = replace(frozen, maps=(*frozen.maps[:-1], strong))
    a = np.full((1, 4), 0.5, np.float32)
    # Every neuron is on σ's slope, so β is 100 times g.
    jacobian = replace(linearise(frozen, a, a), slope=np.ones((1, 4), np.float32))
    with pytest.raises(ide_ref.solvers.NotConverged) as refused:
        solve_beta(jacobian, np.array([[0.3, 1.1, -0.7, 0.9]]), solver="direct", tol=2.4e-7)
    assert "lost to rounding of float32" in str(refused.value)
    assert "gamma" not in str(refused.value)
    assert "more iterations" not in str(refused.value)


def test_defaults_are_those_of_the_dtype():
    assert TOLERANCE == {"float64": 1e-13, "float32": 1e-6}
    for dtype, tol in ((np.float64, 1e-10), (np.float32, 1e-5)):
        assert solve("fixed_point", lambda v: v / 2, np.ones((1, 3), dtype)).tol == tol
