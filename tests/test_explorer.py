"""The explorer's own mathematics, docs/explorer/ide.js, against the equations, the theory and the event loop."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from theorems import dense_network

from ide_ref import IF, LIF, equations, error_bound, find_equilibrium, freeze, simulate
from ide_ref.continuous import simulate_continuous
from ide_ref.theory import continuous_error_bound, split

SCRIPT = Path(__file__).parent.parent / "docs/explorer/ide.js"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node, which runs the explorer's script")

# Reads a request a line and answers it on a line: the names of what it is to compute, for settings or for a network.
SERVER = """
const ide = require(process.argv[1]);
function answer({ settings, network, steps, delay, gamma, loss }) {
  const drawn = settings && ide.draw(settings.seed, settings.n, settings.hears, settings.nIn);
  const net = settings ? ide.network(drawn, settings) : { ...network };
  for (const name of ["W", "F", "b", "x"]) net[name] = Float64Array.from(net[name]);
  const ceiling = delay === null ? 1 : Infinity;
  const star = ide.equilibrium(net, ceiling);
  const run = delay === null ? ide.discrete(net) : ide.continuous(net, delay);
  const bounds = ide.distance(net, gamma, star.a, ceiling, delay);
  const out = { drawn, net, star, norm: ide.spectralNorm(net.W, net.n), steps: [] };
  for (let t = 0; t < steps; t++) {
    let found = run.advance(7);
    while (found === null) found = run.advance(7);
    out.steps.push({ ...found, ...bounds.add(found) });
  }
  const m = ide.mask(net, star.p, ceiling);
  const g = Float64Array.from(loss);
  const beta = ide.beta(net, m, g);
  out.iterates = [g];
  for (let k = 0; k < 5; k++) out.iterates.push(ide.betaStep(net, m, out.iterates[k], g));
  const gradient = ide.hebb(net, m, beta, star.a);
  const difference = ide.difference(net, 0, net.n - 1, 0, ceiling);
  return { ...out, mask: m, beta, gradient, difference };
}
const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  console.log(JSON.stringify(answer(JSON.parse(line)), plain));
});
"""


@pytest.fixture(scope="module")
def ask():
    """What the script computes for a network, or for settings of the page: a function of the request."""
    with subprocess.Popen(
        ["node", "-e", SERVER, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as node:

        def request(*, settings=None, network=None, n_steps=1, delay=None, gamma=0.5, loss=()):
            sent = {"settings": settings, "network": network, "steps": n_steps, "delay": delay, "gamma": gamma}
            node.stdin.write(json.dumps({**sent, "loss": list(loss)}) + "\n")
            node.stdin.flush()
            return json.loads(node.stdout.readline())

        yield request
        node.stdin.close()


def dense(net):
    """W and F of the script's rows."""
    W, F = (np.array(net[name], float) for name in ("W", "F"))
    return W.reshape(net["n"], net["n"]), F.reshape(net["n"], net["nIn"])


def as_equations(net):
    """The script's network as the page of equations has it, its input one sample."""
    W, F = dense(net)
    ones, none = np.ones((1, net["n"])), np.zeros(net["n"])
    maps = [equations.Map(-1, 0, F, np.array(net["b"]), None, ones), equations.Map(0, 0, W, none, None, ones)]
    return equations.Network([net["n"]], maps, net["leak"], net["vTh"]), np.array(net["x"])[None]


def as_frozen(net):
    """The same for the package."""
    neuron = IF(net["vTh"]) if net["leak"] == 1 else LIF(net["leak"], net["vTh"])
    network = dense_network(neuron, [net["n"]], [(-1, 0), (0, 0)], n_in=net["nIn"])
    W, F = dense(net)
    own = {"c0.weight": F, "c0.bias": np.array(net["b"], float), "c1.weight": W}
    return freeze(network, network.init(np.random.default_rng(0)) | own), np.array(net["x"])


def column(answer, name):
    """(T, ...) of what every step has."""
    return np.array([step[name] for step in answer["steps"]], float)


def losses(settings):
    """A ∂L/∂a* for these settings."""
    return np.random.default_rng(settings["seed"]).normal(size=settings["n"])


settings_of_the_page = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "n": st.sampled_from([1, 2, 3, 8, 40]),
        "hears": st.sampled_from([1, 2, 4, 50]),
        "nIn": st.sampled_from([1, 4]),
        "gamma": st.sampled_from([0.0, 0.3, 0.8, 0.97]),
        "leak": st.sampled_from([1.0, 0.95, 0.5]),
        "vTh": st.sampled_from([0.25, 1.0, 3.0]),
        "drive": st.floats(-0.5, 2.0),
        "contrast": st.sampled_from([0.0, 0.5, 3.0]),
    }
)
plain = {"seed": 3, "n": 40, "hears": 4, "nIn": 4, "gamma": 0.8, "leak": 1.0, "vTh": 1.0, "drive": 0.3, "contrast": 0.5}
# Most neurons at an end of σ.
extreme = {**plain, "leak": 0.95, "drive": 0.5, "contrast": 3.0}


@given(settings=settings_of_the_page)
@example(settings=plain)
@example(settings=extreme)
@example(settings={**plain, "drive": -0.5, "contrast": 0.0})  # all silent
@example(settings={**plain, "drive": 2.0, "contrast": 0.0})  # all saturated
def test_spikes_rates_equilibrium_and_gradient_are_the_equations(ask, settings):
    n_steps, g = 60, losses(settings)
    answer = ask(settings=settings, n_steps=n_steps, gamma=settings["gamma"], loss=g)
    net, x = as_equations(answer["net"])
    u = s = [np.zeros((1, settings["n"]))]
    closest = np.inf
    potentials, spikes = [], []
    for _ in range(n_steps):
        u, s = equations.step(net, u, s, x)
        closest = min(closest, np.abs(u[0] + net.v_th * s[0] - net.v_th).min())
        potentials.append(u[0][0])
        spikes.append(s[0][0])
    # One rounding may flip a spike that is this close to the threshold.
    assume(closest > 1e-11)
    np.testing.assert_array_equal(column(answer, "s"), spikes)
    np.testing.assert_allclose(column(answer, "u"), potentials, rtol=0, atol=1e-12 * max(1, np.abs(potentials).max()))
    averages = [equations.average(np.array([spikes[: t + 1]]), net.leak)[0] for t in range(n_steps)]
    np.testing.assert_allclose(column(answer, "a"), averages, rtol=0, atol=1e-12)
    marks = [[[i, t + 1] for i in np.flatnonzero(now)] for t, now in enumerate(spikes)]
    assert [step["spikes"] for step in answer["steps"]] == marks
    a_star = equations.equilibrium(net, x, 1400 if settings["gamma"] > 0.9 else 200)
    np.testing.assert_allclose([answer["star"]["a"]], a_star[0], rtol=0, atol=1e-12)
    # A mask cannot be told where rounding decides.
    p = equations.arriving(net, 0, x, a_star, a_star)
    assume(np.minimum(np.abs(p), np.abs(p - net.v_th)).min() > 1e-11)
    m = equations.mask(net, a_star, x)
    np.testing.assert_array_equal([answer["mask"]], m[0])
    beta = equations.beta(net, m, [g[None]])[0]
    np.testing.assert_allclose([answer["beta"]], beta, rtol=0, atol=1e-12 * max(1, np.abs(beta).max()))
    delta = m[0] * beta / net.v_th
    size = 1e-12 * max(1, np.abs(delta).max())
    np.testing.assert_allclose([answer["gradient"]["b"]], delta, rtol=0, atol=size)
    for name, sent in (("W", a_star[0]), ("F", x)):
        expected = equations.hebb(delta, sent).reshape(-1)
        np.testing.assert_allclose(answer["gradient"][name], expected, rtol=0, atol=size, err_msg=name)
    backwards = equations.block_matrix(net)[0].T * m[0] / net.v_th
    for before, after in itertools.pairwise(answer["iterates"]):
        np.testing.assert_allclose(after, backwards @ before + g, rtol=0, atol=1e-12 * max(1, np.abs(after).max()))


@given(settings=settings_of_the_page)
@example(settings=extreme)
def test_the_bounds_are_those_of_the_theory(ask, settings):
    answer = ask(settings=settings, n_steps=50, gamma=settings["gamma"], loss=losses(settings))
    frozen, x = as_frozen(answer["net"])
    rates = simulate(frozen, x[None], 50, record=True)
    assume(rates.margin.min() > 1e-11)
    bound = error_bound(frozen, x[None], rates)
    # The package's are rounded upwards, and wider by its certificate of a*.
    known = bound.certificate.max() + bound.rounding.max() / (answer["net"]["vTh"] * (1 - settings["gamma"]))
    assert known < 1e-9
    for name, theirs in (("error", bound.error), ("oneStep", bound.one_step), ("iterated", bound.iterated)):
        np.testing.assert_allclose(column(answer, name), theirs[0, :, 0], rtol=1e-12, atol=1e-12 + known, err_msg=name)
    # Without that, (ERR) from the package's parts of it.
    v_th, gamma = settings["vTh"], settings["gamma"]
    r = (bound.drift + bound.potential)[0, :, 0] / v_th
    before = np.append(np.linalg.norm(bound.equilibrium.a), bound.error[0, :-1, 0])
    sums = itertools.accumulate(r, lambda total, now: gamma * total + now, initial=before[0])
    for name, exactly in (("oneStep", gamma * before + r), ("iterated", list(sums)[1:])):
        np.testing.assert_allclose(column(answer, name), exactly, rtol=1e-12, atol=1e-12, err_msg=name)
    u_plus = split(frozen, x[None], rates).u_plus[0]
    c = np.maximum.accumulate(np.abs(u_plus).max(axis=1))
    np.testing.assert_allclose(column(answer, "c"), c, rtol=0, atol=1e-12 * max(1, c[-1]))
    floor, at_most = answer["steps"][-1]["floor"], bound.floor()[0, 0]
    # The package's c has what rounding may have taken from S_T a[T].
    assert floor == pytest.approx(at_most, rel=1e-9, abs=1e-9)
    assert floor <= at_most


@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_a_neuron_that_meets_its_threshold_fires(ask, leak):
    """Sums of quarters have no rounding: every spike and potential to the last bit, ties with V_th included."""
    rng = np.random.default_rng(1)
    n, ties = 6, 0
    for _ in range(10):
        network = {"n": n, "nIn": 2, "leak": leak, "vTh": 1.0, "b": (rng.integers(0, 4, n) / 4).tolist()}
        network |= {"W": (rng.integers(-2, 3, n * n) / 4).tolist(), "F": (rng.integers(-2, 3, 2 * n) / 4).tolist()}
        answer = ask(network={**network, "x": [1.0, 1.0]}, n_steps=8, loss=np.ones(n))
        net, x = as_equations(answer["net"])
        u = s = [np.zeros((1, n))]
        for step in answer["steps"]:
            u, s = equations.step(net, u, s, x)
            np.testing.assert_array_equal([step["s"]], s[0])
            np.testing.assert_array_equal([step["u"]], u[0])
            ties += int(((u[0] == 0) & (s[0] == 1)).sum())
    assert ties > 5


@given(settings=settings_of_the_page, delay=st.sampled_from([0.0, 0.3, 1.0, 2.5]))
@example(settings=plain, delay=1.0)
@example(settings={**plain, "leak": 0.95}, delay=0.0)
def test_continuous_time_is_the_packages_event_loop(ask, settings, delay):
    n_steps = 20
    answer = ask(settings=settings, n_steps=n_steps, delay=delay, gamma=settings["gamma"], loss=losses(settings))
    frozen, x = as_frozen(answer["net"])
    tau = np.inf if settings["leak"] == 1 else -1 / np.log(settings["leak"])
    run = simulate_continuous(frozen, x, np.arange(1.0, n_steps + 1), tau=tau, delay=delay)
    fired = [spike for step in answer["steps"] for spike in step["spikes"]]
    times, neurons = np.array([time for _, time in fired]), [neuron for neuron, _ in fired]
    # Rounding may exchange two spikes of one instant, and decide whether a spike at a sample's time comes before it.
    assume(np.abs(run.spike_times - np.round(run.spike_times)).min(initial=1) > 1e-9)
    assume(np.diff(run.spike_times).min(initial=1) > 1e-10)
    assert neurons == run.spike_neurons.tolist()
    np.testing.assert_allclose(times, run.spike_times, rtol=0, atol=1e-9)
    np.testing.assert_allclose(column(answer, "a"), run.a, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(column(answer, "before"), run.a_delayed, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(column(answer, "u"), run.u, rtol=1e-9, atol=1e-9)
    if settings["gamma"] < 0.9:
        star = find_equilibrium(frozen, x[None], method="newton", sigma="relu")
        np.testing.assert_allclose([answer["star"]["a"]], star.a, rtol=1e-12, atol=1e-12)
        bound = continuous_error_bound(frozen, x, run)
        np.testing.assert_allclose(column(answer, "error"), bound.error[:, 0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(column(answer, "oneStep"), bound.one_step[:, 0], rtol=1e-9, atol=1e-9)
        c = np.abs(run.u_plus).max()
        last = answer["steps"][-1]
        assert last["c"] == pytest.approx(c, rel=1e-9, abs=1e-9)
        v_th, slack = settings["vTh"], 1 - settings["gamma"]
        assert last["floor"] == pytest.approx(c * np.sqrt(settings["n"]) / (tau * v_th * slack), rel=1e-9, abs=1e-9)
        assert last["floor"] <= bound.floor(tau)[0] + 1e-9


@pytest.mark.parametrize("delay", [0.0, 0.25, 1.0])
def test_what_happens_at_one_instant_has_the_documented_order(ask, delay):
    """Drives that are powers of two and weights in quarters: many spikes at one instant, and none is rounded."""
    rng = np.random.default_rng(2)
    n, together = 5, 0
    for _ in range(20):
        network = {"n": n, "nIn": 1, "leak": 1.0, "vTh": 1.0, "b": (2.0 ** rng.integers(-2, 2, n)).tolist()}
        network |= {"W": (rng.integers(-2, 2, n * n) / 4).tolist(), "F": [0.0] * n, "x": [1.0]}
        answer = ask(network=network, n_steps=6, delay=delay, loss=np.ones(n))
        frozen, x = as_frozen(answer["net"])
        run = simulate_continuous(frozen, x, np.arange(1.0, 7), delay=delay)
        spikes = [tuple(spike) for step in answer["steps"] for spike in step["spikes"]]
        assert spikes == list(zip(run.spike_neurons.tolist(), run.spike_times.tolist(), strict=True))
        np.testing.assert_array_equal(column(answer, "u"), run.u)
        together += int((np.diff(run.spike_times) == 0).sum())
    assert together > 50


def random_numbers(seed):
    """xorshift, as the page has it."""
    state = (seed * 0x9E3779B9 + 1) % 2**32 or 1
    while True:
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        yield state / 2**32


def drawn(*, seed, n, hears, nIn, **_):
    """The weights of a seed, as the page draws them."""
    random = random_numbers(seed)
    W = np.zeros((n, n))
    for i in range(n):
        senders = [j for j in range(n) if j != i or hears >= n]
        for k in range(min(hears, n)):
            if hears < n:
                other = k + int(next(random) * (len(senders) - k))
                senders[k], senders[other] = senders[other], senders[k]
            W[i, senders[k]] = 2 * next(random) - 1
    F = np.array([[2 * next(random) - 1 for _ in range(nIn)] for _ in range(n)])
    return W, F, np.array([next(random) for _ in range(nIn)])


@given(settings=settings_of_the_page)
@example(settings={**plain, "n": 200, "seed": 2**32 - 1})
@example(settings={**plain, "n": 3, "hears": 2, "seed": 0})
def test_a_seed_gives_the_weights_it_gives_in_python(ask, settings):
    """W̄, F̄ and x to the last bit; W has the norm γ V_th that was asked for."""
    answer = ask(settings=settings, loss=losses(settings))
    W, F, x = drawn(**settings)
    np.testing.assert_array_equal(answer["drawn"]["W"], W.reshape(-1))
    np.testing.assert_array_equal(answer["drawn"]["F"], F.reshape(-1))
    np.testing.assert_array_equal(answer["net"]["x"], x)
    assert answer["drawn"]["norm"] == pytest.approx(np.linalg.norm(W, 2), rel=1e-13)
    W_used, F_used = dense(answer["net"])
    v_th = settings["vTh"]
    np.testing.assert_allclose(W_used, settings["gamma"] * v_th * W / np.linalg.norm(W, 2), rtol=1e-13)
    assert np.linalg.norm(W_used, 2) == pytest.approx(settings["gamma"] * v_th, rel=1e-13)
    assert answer["norm"] == pytest.approx(settings["gamma"] * v_th, rel=1e-13)
    np.testing.assert_array_equal(F_used, settings["contrast"] * F)
    assert answer["net"]["b"] == [settings["drive"]] * settings["n"]


@pytest.mark.parametrize(
    "W",
    [np.zeros((3, 3)), np.eye(5), np.eye(4)[[1, 2, 3, 0]], np.ones((4, 4)), np.diag([3.0, 3.0, 1.0]), [[0, 0], [5, 0]]],
    ids=["zero", "identity", "permutation", "rank one", "a value twice", "nilpotent"],
)
def test_the_norm_needs_no_gap_between_singular_values(ask, W):
    W = np.asarray(W, float)
    n = len(W)
    network = {"n": n, "nIn": 1, "leak": 1.0, "vTh": 10.0, "W": W.reshape(-1).tolist()}
    answer = ask(network={**network, "F": [1.0] * n, "b": [0.0] * n, "x": [1.0]}, loss=np.ones(n))
    assert answer["norm"] == pytest.approx(np.linalg.norm(W, 2), rel=1e-14)


@pytest.mark.parametrize("delay", [None, 1.0])
@pytest.mark.parametrize("settings", [plain, extreme, {**plain, "n": 1}, {**plain, "n": 2, "gamma": 0.97}])
def test_the_gradient_is_the_difference_quotient(ask, settings, delay):
    """∂a*_0/∂W of the last neuron's connection from the first, by the page's own differences."""
    n = settings["n"]
    answer = ask(settings=settings, delay=delay, gamma=settings["gamma"], loss=np.eye(n)[0])
    found = answer["gradient"]["W"][(n - 1) * n]
    assert answer["difference"] == pytest.approx(found, rel=1e-6, abs=1e-9)
