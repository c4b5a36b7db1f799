"""The fast tier against the page of equations: every graph, synapse, normalisation, restriction, mask and neuron."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import cases
from hypothesis import assume, given
from hypothesis import strategies as st

import ide_ref
from ide_ref import backward, cross_entropy, equations, find_equilibrium, read_out, simulate
from ide_ref.equilibrium import fixed_point_map
from ide_ref.synapses import from_channels_last

PAGE = Path(ide_ref.__file__).parent / "equations.py"


@pytest.mark.kernels
@given(
    case=st.one_of(
        cases(exact=True, own_neurons=True), cases(exact=True), cases(exact=True, dtype=np.float32, own_neurons=True)
    )
)
def test_spikes_are_the_equations_spikes_on_exact_sums(case):
    """Every spike and potential to the last bit, in either dtype, and what is counted of them."""
    rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    spikes, potentials, margin = case.rollout()
    assert rates.a.dtype == rates.recording.u.dtype == case.x.dtype
    np.testing.assert_array_equal(rates.recording.s, spikes)
    np.testing.assert_array_equal(rates.recording.u, potentials)
    np.testing.assert_array_equal(rates.u, potentials[:, -1])
    assert rates.margin.min() == margin
    atol = 1e-14 if case.x.dtype == np.float64 else 1e-6
    np.testing.assert_allclose(rates.a, case.averages(spikes), rtol=0, atol=atol)
    for i, (population, place) in enumerate(zip(case.network.populations, case.places(), strict=True)):
        np.testing.assert_array_equal(rates.n_spikes[:, i], spikes[:, :, place].sum(axis=(1, 2)))
        assert rates.mean_spikes[population.name] == pytest.approx(spikes[:, :, place].mean(), abs=1e-15)


@given(case=st.one_of(cases(own_neurons=True), cases(batch_statistics=True), cases(), cases(own_neurons=True)))
def test_rates_loss_beta_and_every_gradient_are_the_equations(case):
    rates = simulate(case.frozen, case.x, case.n_steps)
    # A rounding may flip a spike that comes this close to the threshold, or a mask that comes this close to its ends.
    assume(rates.margin.min() > 1e-9)
    loss, d_logits = cross_entropy(read_out(case.frozen, rates), case.y)
    net = case.spec.net
    at = case.split(rates.a)
    p = np.concatenate([equations.arriving(net, i, case.x_mean, at, at) for i in range(len(at))], axis=1)
    assume(np.minimum(np.abs(p), np.abs(p - case.v_th)).min() > 1e-9)
    slope = ((p >= 0) & (p <= case.v_th))[:, None, :] / case.v_th
    assume(np.linalg.cond(np.eye(p.shape[1]) - equations.block_matrix(net).transpose(0, 2, 1) * slope).max() < 1e4)
    value, a, beta, gradients, statistics = case.spec.gradient(case.y)
    np.testing.assert_allclose(rates.a, a, rtol=0, atol=1e-13)
    assert loss == pytest.approx(value, rel=1e-12)
    back = backward(case.frozen, rates, d_logits, solver="direct", tol=1e-9)
    scale = max(1.0, np.abs(beta).max())
    np.testing.assert_allclose(back.beta, beta, rtol=0, atol=1e-10 * scale)
    assert set(back.gradients) == set(gradients)
    vectors = {f"{c.name}.singular_vector" for c in case.network.connections if c.restriction}
    assert set(back.statistics) == set(statistics) | vectors
    for ours, theirs in ((back.gradients, gradients), (back.statistics, statistics)):
        for name, found in theirs.items():
            size = 1e-10 * max(1.0, np.abs(found).max())
            np.testing.assert_allclose(ours[name], found, rtol=0, atol=size, err_msg=name)


@given(case=st.one_of(cases(contractive=True), cases(contractive=True, own_neurons=True)))
def test_a_sweep_and_its_equilibrium_are_the_equations(case):
    state = find_equilibrium(case.frozen, case.x)
    a_star = np.concatenate(equations.equilibrium(case.spec.net, case.x_mean, 200), axis=1)
    np.testing.assert_allclose(state.a, a_star, rtol=0, atol=1e-11)
    z = np.random.default_rng(0).random((len(case.x), case.network.feedback_size))
    swept, p = case.sweep(z)
    x = from_channels_last(case.x_mean, case.network.input_shape)
    size = 1e-13 * max(1.0, np.abs(p).max()) * len(case.network.populations)
    expected = swept[:, case.feedback_sources()]
    np.testing.assert_allclose(fixed_point_map(case.frozen, x, z), expected, rtol=0, atol=size)


def test_the_loss_of_large_logits_is_that_of_their_differences():
    o, y = np.random.default_rng(0).normal(size=(3, 4)), np.array([0, 3, 1])
    large = o + np.array([[800], [-800], [0]])
    for found, expected in zip(equations.loss(large, y), equations.loss(o, y), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


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
    code = f"{block}import ide_ref.equations\nprint(sorted(n for n in sys.modules if n.startswith('ide_ref')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PAGE.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['ide_ref', 'ide_ref.equations']"
