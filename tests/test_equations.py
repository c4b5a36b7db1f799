"""The fast tier against the page of equations: every graph, synapse, normalisation, restriction, mask and neuron."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import cases
from hypothesis import assume, given

import ide_ref
from ide_ref import backward, cross_entropy, equations, find_equilibrium, read_out, simulate
from ide_ref.equilibrium import fixed_point_map, gather_sources
from ide_ref.synapses import from_channels_last
from ide_ref.verify.specification import specified

PAGE = Path(ide_ref.__file__).parent / "equations.py"


@pytest.mark.kernels
@given(case=cases(exact=True))
def test_spikes_are_the_equations_spikes_on_exact_sums(case):
    rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    spec = specified(case.frozen, case.x, case.n_steps)
    spikes = np.concatenate(equations.rollout(spec.net, spec.x), axis=2)
    np.testing.assert_array_equal(rates.spikes, spikes)
    np.testing.assert_allclose(rates.a, equations.average(spikes, spec.net.leak), rtol=0, atol=1e-13)


@given(case=cases())
def test_rates_loss_beta_and_every_gradient_are_the_equations(case):
    rates = simulate(case.frozen, case.x, case.n_steps)
    # A rounding may flip a spike that comes this close to the threshold, or a mask that comes this close to its ends.
    assume(rates.margin.min() > 1e-9)
    loss, d_logits = cross_entropy(read_out(case.frozen, rates), case.y)
    spec = specified(case.frozen, case.x, case.n_steps)
    p = np.concatenate(
        [
            equations.arriving(spec.net, i, equations.average(spec.x, spec.net.leak), *2 * [split(spec, rates.a)])
            for i in range(len(spec.net.sizes))
        ],
        axis=1,
    )
    assume(np.minimum(np.abs(p), np.abs(p - spec.net.v_th)).min() > 1e-9)
    system = np.eye(p.shape[1]) - equations.block_matrix(spec.net).transpose(0, 2, 1) * (
        ((p >= 0) & (p <= spec.net.v_th))[:, None, :] / spec.net.v_th
    )
    assume(np.linalg.cond(system).max() < 1e4)
    value, a, beta, gradients, statistics = spec.gradient(case.y)
    np.testing.assert_allclose(rates.a, a, rtol=0, atol=1e-13)
    assert loss == pytest.approx(value, rel=1e-12)
    back = backward(case.frozen, rates, d_logits, solver="direct", tol=1e-9)
    scale = max(1.0, np.abs(beta).max())
    np.testing.assert_allclose(back.beta, beta, rtol=0, atol=1e-10 * scale)
    assert set(back.gradients) == set(gradients)
    for name, found in gradients.items():
        size = max(1.0, np.abs(found).max())
        np.testing.assert_allclose(back.gradients[name], found, rtol=0, atol=1e-10 * size, err_msg=name)
    for name, found in statistics.items():
        size = max(1.0, np.abs(found).max())
        np.testing.assert_allclose(back.statistics[name], found, rtol=0, atol=1e-10 * size, err_msg=name)


def split(spec, state):
    return np.split(state, np.cumsum(spec.net.sizes)[:-1], axis=1)


@given(case=cases(contractive=True))
def test_a_sweep_and_its_equilibrium_are_the_equations(case):
    spec = specified(case.frozen, case.x, case.n_steps)
    x_mean = equations.average(spec.x, spec.net.leak)
    state = find_equilibrium(case.frozen, case.x)
    a_star = np.concatenate(equations.equilibrium(spec.net, x_mean, 400), axis=1)
    np.testing.assert_allclose(state.a, a_star, rtol=0, atol=1e-11)
    z = np.random.default_rng(0).random(gather_sources(case.network, state.a).shape)
    given_rates = np.zeros_like(state.a)
    given_rates[:, case.feedback_sources()] = z
    swept, p = equations.sweep(spec.net, split(spec, given_rates), x_mean)
    x = from_channels_last(x_mean, case.network.input_shape)
    expected = gather_sources(case.network, np.concatenate(swept, axis=1))
    size = max(1.0, *(np.abs(q).max() for q in p))
    np.testing.assert_allclose(fixed_point_map(case.frozen, x, z), expected, rtol=0, atol=1e-13 * size * len(p))


def test_sgd_step_is_the_equations():
    rng = np.random.default_rng(0)
    theta, gradient, velocity = rng.normal(size=(3, 4, 5))
    params, moved = ide_ref.SGD(momentum=0.9, weight_decay=5e-4).step(
        {"w": theta}, {"w": velocity}, {"w": gradient}, rate=0.05
    )
    expected = equations.sgd_step(theta, velocity, gradient, 0.05, 0.9, 5e-4)
    np.testing.assert_allclose(params["w"], expected[0], rtol=1e-14)
    np.testing.assert_allclose(moved["w"], expected[1], rtol=1e-14)


def test_dropout_is_the_equations():
    draws = np.arange(1 << 16) / (1 << 16)
    keep = equations.dropout(draws, 0.25)
    assert set(np.unique(keep)) == {0.0, 1 / 0.75}
    assert np.mean(keep == 0) == 0.25
    assert keep.mean() == pytest.approx(1)


def test_the_page_is_short_and_needs_numpy_alone():
    """It can be read, and imported where neither SciPy nor Numba is installed."""
    assert len(PAGE.read_text().splitlines()) <= 300
    block = "import sys; sys.modules.update(dict.fromkeys(('scipy', 'numba', 'llvmlite')))\n"
    code = block + (
        "import ide_ref.equations as e\n"
        "used = {name.partition('.')[0] for name, module in sys.modules.items() if module is not None}\n"
        "print(sorted(n for n in sys.modules if n.startswith('ide_ref')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PAGE.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['ide_ref', 'ide_ref.equations']"
