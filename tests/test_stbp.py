"""Backpropagation through time: against differences of a network that fires smoothly, its equations, and autograd."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
import tiny
from graphs import cases
from hypothesis import assume, given
from hypothesis import strategies as st

from ide_ref import (
    IF,
    LIF,
    Connection,
    Dense,
    Surrogate,
    backward,
    backward_through_time,
    build,
    contraction,
    cross_entropy,
    equations,
    freeze,
    presets,
    read_out,
    simulate,
    stbp,
)
from ide_ref import equations_stbp as page
from ide_ref.authors import Profile, edited
from ide_ref.bench import steps
from ide_ref.cli import _common, main
from ide_ref.constraints import BatchNorm
from ide_ref.maps import AffineMap, Pullback
from ide_ref.stbp import SURROGATES
from ide_ref.training import checkpoint, evaluation, loop
from ide_ref.training.step import training_step
from ide_ref.verify import small
from ide_ref.verify.specification import Specified, specify

names = st.sampled_from(SURROGATES)
widths = st.sampled_from([0.37, 0.83, 1.9])


def curves(name, width):
    """h and its integral, of a width in potential."""
    found = page.SURROGATES[name]
    return partial(found.hump, w=width), partial(found.smooth_step, w=width)


@pytest.mark.parametrize("name", SURROGATES)
def test_a_hump_is_the_derivative_of_a_step_from_0_to_1(name):
    """Of every width, in either dtype, and 1/w high at the threshold; the rectangle ends where it says."""
    for width in (0.37, 1.0, 4.0):
        hump, smooth_step = curves(name, width)
        z = np.linspace(-3, 3, 1201) * width + 1e-3
        slope = (smooth_step(z + 1e-6) - smooth_step(z - 1e-6)) / 2e-6
        np.testing.assert_allclose(hump(z), slope, atol=1e-6 / width)
        ends = np.array([-1e9, 1e9]) * width
        np.testing.assert_allclose([*smooth_step(ends), smooth_step(np.zeros(1))[0]], [0, 1, 0.5], atol=1e-9)
        assert hump(np.zeros(1)) == pytest.approx(1 / width)
        z = np.append(z, [-width / 2, 0, width / 2, -width, width])
        for dtype in (np.float32, np.float64):
            found = Surrogate(name, width / 2).hump(z.astype(dtype), 2.0)
            assert found.dtype == dtype
            tolerance = 1e-6 if dtype == np.float32 else 1e-14
            np.testing.assert_allclose(found, hump(z.astype(dtype).astype(float)), rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class ThroughTime(Specified):
    """A frozen network by the page, which has another gradient than the equations have."""

    method: Callable

    def gradient(self, y):
        with mock.patch.object(equations, "gradient", self.method):
            return super().gradient(y)


def curves_of(case, name, width):
    """The same for each population, of a width in units of its V_th."""
    found = [curves(name, width * equations.own(case.spec.net.v_th, i)) for i in range(len(case.network.populations))]
    return [list(each) for each in zip(*found, strict=True)]


def specified(case, params, **options):
    """By the page of equations with these parameters."""
    masks = {m.name: m.keep for m in case.frozen.maps if m.keep is not None}
    spec = specify(case.network, params, case.x, case.n_steps, masks=masks, training=case.training)
    return ThroughTime(**vars(spec), method=partial(page.gradient, **options))


def heaviside(z):
    return np.where(z >= 0, 1.0, 0.0)


def fast(case, **options):
    rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    # A rounding may flip a spike that comes this close to the threshold.
    assume(rates.margin.min() > 1e-9)
    loss, d_logits = cross_entropy(read_out(case.frozen, rates), case.y)
    for array in (rates.recording.s, rates.recording.u, rates.a, d_logits):
        array.flags.writeable = False
    return loss, backward_through_time(case.frozen, case.x, rates, d_logits, **options)


@given(
    case=st.one_of(cases(own_neurons=True), cases(), cases(batch_statistics=True)),
    name=names,
    width=widths,
    through_reset=st.booleans(),
    hidden=st.booleans(),
)
def test_every_gradient_is_the_equations(case, name, width, through_reset, hidden):
    """Under ``batch_statistics_in_gradient`` too, as the CIFAR presets have it: through hidden statistics."""
    hidden = hidden and case.training
    if hidden:
        network = edited(case.network, Profile(batch_statistics_in_gradient=True))
        folded = freeze(network, case.params, case.x, training=True, rng=np.random.default_rng(0))
        # The masks are those of the case.
        maps = [replace(m, keep=known.keep) for m, known in zip(folded.maps, case.frozen.maps, strict=True)]
        case = replace(case, frozen=replace(folded, maps=tuple(maps)))
    loss, back = fast(case, surrogate=Surrogate(name, width), through_reset=through_reset)
    hump, _ = curves_of(case, name, width)
    options = {"fires": heaviside, "hump": hump, "through_reset": through_reset, "hidden_from_batch": hidden}
    value, _, delta, gradients, statistics = specified(case, case.params, **options).gradient(case.y)
    assert loss == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(back.delta, delta, rtol=0, atol=1e-10 * max(1.0, np.abs(delta).max()))
    vectors = {f"{c.name}.singular_vector" for c in case.network.connections if c.restriction}
    assert set(back.gradients) == set(gradients) == set(case.network.trainable)
    assert set(back.statistics) == set(statistics) | vectors
    for ours, theirs in ((back.gradients, gradients), (back.statistics, statistics)):
        for part, found in theirs.items():
            size = 1e-10 * max(1.0, np.abs(found).max())
            assert ours[part].shape == case.params[part].shape
            np.testing.assert_allclose(ours[part], found, rtol=0, atol=size, err_msg=part)


@given(
    case=st.one_of(cases(own_neurons=True), cases(), cases(batch_statistics=True)),
    name=names,
    width=widths,
    seed=st.integers(0, 2**32 - 1),
)
def test_a_network_that_fires_smoothly_has_this_very_gradient(case, name, width, seed):
    """Differences of the loss along a random direction of each parameter, normalisation and restriction included."""
    hump, smooth_step = curves_of(case, name, width)
    spec = specified(case, case.params, fires=smooth_step, hump=hump)
    # Where the hump has a jump or a kink, differences see both sides.
    edges = {"rectangle": (width / 2,), "triangle": (0.0, width)}.get(name, ())
    potentials = [np.concatenate(now, axis=1) for now in page.unroll(spec.net, spec.x, smooth_step)[0]]
    z = [np.abs(v / case.v_th - 1) for v in potentials]
    assume(all(np.abs(part - edge).min() > 1e-5 for part in z for edge in edges))
    _, _, _, gradients, _ = spec.gradient(case.y)
    rng = np.random.default_rng(seed)

    def loss(part, change):
        moved = specified(case, {**case.params, part: case.params[part] + change})
        source, W_o, b_o = moved.readout
        s = np.stack([now[source] for now in page.unroll(moved.net, moved.x, smooth_step)[1]], axis=1)
        return equations.loss(
            equations.read_out(W_o, b_o, equations.average(s, equations.own(moved.net.leak, source))), case.y
        )[0]

    for part, found in gradients.items():
        direction = rng.normal(size=found.shape)

        def slope(h, part=part, direction=direction):
            return (loss(part, h * direction) - loss(part, -h * direction)) / (2 * h)

        near, size = slope(1e-6), 1e-7 * (1 + np.abs(found).max())
        if np.sum(found * direction) != pytest.approx(near, rel=1e-6, abs=size):
            # As sharp as differences are: feedback may carry a change over an edge.
            assert np.sum(found * direction) == pytest.approx(near, rel=1e-6, abs=size + abs(near - slope(3e-6))), part


def autograd(case, name, width, through_reset):
    """Loss and gradients by PyTorch, whose only hint is the derivative of the spike."""
    import torch

    spec = specified(case, case.params)
    theta = {n: torch.tensor(np.asarray(value)) for n, value in case.params.items()}
    for n in case.network.trainable:
        theta[n].requires_grad_()
    leak, v_th = spec.net.leak, spec.net.v_th
    w = width * v_th
    x, x_mean = torch.tensor(spec.x), torch.tensor(case.x_mean)

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return (z >= 0).to(z.dtype)

        @staticmethod
        def backward(ctx, grad):
            (z,) = ctx.saved_tensors
            if name == "rectangle":
                return grad * (z.abs() < w / 2) / w
            if name == "triangle":
                return grad * torch.relu(1 - z.abs() / w) / w
            if name == "sigmoid":
                y = torch.sigmoid(4 * z / w)
                return grad * 4 / w * y * (1 - y)
            return grad / (w * (1 + (torch.pi * z / w) ** 2))

    def placed(weight, tie):
        return torch.where(torch.tensor(tie) >= 0, weight.reshape(-1)[torch.tensor(np.maximum(tie, 0))], 0.0)

    maps = []
    for n, c, folded in zip(spec.names, spec.connections, spec.net.maps, strict=True):
        weight = theta.get(f"{n}.weight")
        if c.restriction is not None:
            matrix = weight.reshape(len(weight), -1) if c.restriction == "kernel" else placed(weight, c.tie)
            weight = theta[f"{n}.alpha"] * weight / torch.linalg.matrix_norm(matrix, 2)
        W = torch.tensor(folded.W) if weight is None else placed(weight, c.tie)
        channel = torch.tensor(c.channel)
        b = theta[f"{n}.bias"][channel] if f"{n}.bias" in theta else torch.zeros(len(channel), dtype=W.dtype)
        norm = None
        if f"{n}.bn_weight" in theta:
            mean, variance = theta[f"{n}.running_mean"], theta[f"{n}.running_var"]
            if case.training and c.source < 0:
                z = (x_mean @ W.T + b).T
                z = torch.stack([z[channel == k].reshape(-1) for k in range(len(mean))])
                mean, variance = z.mean(1), z.var(1, correction=0)
            norm = theta[f"{n}.bn_weight"], theta[f"{n}.bn_bias"], mean, variance
        maps.append((c.source, c.target, W, b, norm, channel, torch.tensor(folded.keep)))

    u = [torch.zeros(len(x), n, dtype=x.dtype) for n in spec.net.sizes]
    s, a, total = list(u), list(u), 0.0
    for t in range(x.shape[1]):
        now, after = [], []
        for i in range(len(u)):
            v = leak * u[i]
            for source, target, W, b, norm, channel, keep in maps:
                if target == i:
                    y = (x[:, t] if source < 0 else now[source] if source < i else s[source]) @ W.T + b
                    if norm is not None:
                        gain, shift, mean, variance = (part[channel] for part in norm)
                        y = gain * (y - mean) / torch.sqrt(variance + 1e-5) + shift
                    v = v + keep * y
            now.append(Spike.apply(v - v_th))
            after.append(v - v_th * (now[i] if through_reset else now[i].detach()))
        u, s = after, now
        a, total = [leak * rate + fired for rate, fired in zip(a, s, strict=True)], leak * total + 1
    tie = torch.tensor(spec.readout_tie)
    logits = a[spec.readout[0]] / total @ theta["readout.weight"].reshape(-1)[tie].T + theta["readout.bias"]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(case.y))
    loss.backward()
    zero = torch.zeros(())
    return loss.item(), {n: (zero if theta[n].grad is None else theta[n].grad).numpy() for n in case.network.trainable}


@given(case=st.one_of(cases(), cases(batch_statistics=True)), name=names, width=widths, through_reset=st.booleans())
def test_every_gradient_is_autograds(case, name, width, through_reset):
    pytest.importorskip("torch")
    loss, back = fast(case, surrogate=Surrogate(name, width), through_reset=through_reset)
    value, gradients = autograd(case, name, width, through_reset)
    assert loss == pytest.approx(value, rel=1e-12)
    for part, found in gradients.items():
        size = 1e-10 * max(1.0, np.abs(found).max())
        np.testing.assert_allclose(back.gradients[part], found, rtol=0, atol=size, err_msg=part)


@given(case=cases(exact=True, dtype=np.float32), name=names, width=widths, through_reset=st.booleans())
def test_float32_is_float64_rounded(case, name, width, through_reset):
    rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    _, d_logits = cross_entropy(read_out(case.frozen, rates), case.y)
    options = {"surrogate": Surrogate(name, width), "through_reset": through_reset}
    back = backward_through_time(case.frozen, case.x, rates, d_logits, **options)
    hump, _ = curves(name, width * case.network.neuron.v_th)
    spec = specified(case, case.params, fires=heaviside, hump=hump, through_reset=through_reset)
    *_, gradients, _ = spec.gradient(case.y)
    largest = max(1.0, *(np.abs(found).max() for found in gradients.values()))
    for part, found in gradients.items():
        assert back.gradients[part].dtype == back.delta.dtype == np.float32
        np.testing.assert_allclose(back.gradients[part], found, rtol=0, atol=1e-5 * largest, err_msg=part)


def test_a_long_sum_of_float32_is_that_of_its_terms():
    """⟨W, H⟩ of the derivative by the normalisation's weight, of two channels and 100,000 equal terms each."""
    one = np.ones(2, np.float32)
    norm = BatchNorm(one, 0 * one, 0 * one, one, from_batch=False)
    synapse, taps = Dense((100_000,), (2,)), np.full((1, 100_000, 2), 0.1, np.float32)
    connection = Connection("c", "a", "b", synapse, batch_norm=True)
    params = {"c.running_mean": 0 * one, "c.running_var": one}
    mean, delta = np.zeros((1, 100_000), np.float32), np.zeros((1, 2), np.float32)
    map_ = AffineMap("c", synapse, taps, norm=norm)
    found, _ = stbp._pull_back(Pullback(connection, params), map_, taps, delta, mean)
    expected = 1e5 * np.float64(np.float32(0.1) * np.float32(0.1)) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(found["c.bn_weight"], expected, rtol=2e-7)


def layer(n, neuron, **params):
    """One population with feedback to itself and no normalisation."""
    network = build(
        f"{n} (F{n})", input_shape=(n,), n_classes=2, neuron=neuron, batch_norm=False, restriction=None, dropout=0.0
    )
    drawn = network.init(np.random.default_rng(0))
    return freeze(network, {**drawn, **params})


@pytest.mark.parametrize("through_reset", [True, False])
@pytest.mark.parametrize("drive", [1.1, 0.8])
def test_two_steps_by_hand(drive, through_reset):
    """One neuron, which fires in the first step or in the second: δ[2] and δ[1] written out."""
    leak, v_th, f, b = 0.5, 1.0, 0.3, 0.2
    frozen = layer(1, LIF(leak, v_th), **{"feedback.weight": np.array([[f]]), "input.bias": np.array([b])})
    x = np.array([[(drive - b) / frozen.params["input.weight"].item()]])
    rates = simulate(frozen, x, 2, record=True)
    fired = float(drive > v_th)
    np.testing.assert_array_equal(rates.recording.s[0, :, 0], [fired, 1])
    back = backward_through_time(
        frozen, x, rates, np.array([[0.7, -0.4]]), surrogate=Surrogate("triangle", 2.0), through_reset=through_reset
    )
    g = np.array([0.7, -0.4]) @ frozen.params["readout.weight"][:, 0]
    v_2 = leak * (drive - v_th * fired) + drive + f * fired
    h_1, h_2 = (0.5 * (1 - abs(v - v_th) / 2) for v in (drive, v_2))
    second = h_2 * g / (1 + leak)
    first = leak * second + h_1 * (leak * g / (1 + leak) + f * second - through_reset * v_th * leak * second)
    for part, expected in (
        ("input.bias", first + second),
        ("input.weight", (first + second) * x.item()),
        ("feedback.weight", second * fired),
    ):
        assert back.gradients[part].item() == pytest.approx(expected, rel=1e-13), part


@pytest.mark.parametrize("n_steps", [1, 7, 60])
def test_near_the_threshold_it_is_a_series_of_the_implicit_gradient(n_steps):
    """Where every |v − V_th| < V_th/2, a rectangle of width V_th makes h V_th = 1, and nothing passes a reset.

    Then Σ_t δ[t] is the series of (BETA) with weights S_{T−k}/S_T.
    """
    n, v_th, neuron = 5, 2.0, LIF(0.5, 2.0)
    rng = np.random.default_rng(1)
    W = rng.normal(size=(n, n))
    W *= 0.04 / np.abs(W).max()
    frozen = layer(n, neuron, **{"feedback.weight": W, "input.weight": np.eye(n)})
    x = rng.uniform(1.3, 1.7, (3, n))
    rates = simulate(frozen, x, n_steps, record=True)
    d_logits = rng.normal(size=(3, 2))
    back = backward_through_time(frozen, x, rates, d_logits)
    g = d_logits @ frozen.params["readout.weight"]
    expected, power = np.zeros_like(g), g / v_th
    for k in range(n_steps):
        expected += neuron.total_weight(n_steps - k) / neuron.total_weight(n_steps) * power
        power = power @ W / v_th
    np.testing.assert_allclose(back.delta, expected, rtol=0, atol=1e-14)
    if n_steps == 60:
        implicit = backward(frozen, rates, d_logits, solver="direct", tol=1e-12)
        np.testing.assert_allclose(back.delta, implicit.beta / v_th, rtol=0, atol=1e-12)


def test_only_a_recording_of_the_same_input_is_taken():
    frozen = layer(2, IF(1.0))
    x, train = np.ones((3, 2)), np.ones((3, 4, 2))
    d_logits = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"rates have no recording; expected those of simulate\(..., record=True\)"):
        backward_through_time(frozen, x, simulate(frozen, x, 4), d_logits)
    rates = simulate(frozen, train, 4, record=True)
    for other in (train[:2], train[:, :3]):
        with pytest.raises(ValueError, match=r"x has shape .*; expected the input of the rates, 3 samples and 4 steps"):
            backward_through_time(frozen, other, rates, d_logits)


STBP = {"method": "stbp", "surrogate": "triangle", "surrogate_width": 0.8, "through_reset": False}


def test_a_training_by_it_is_the_pipeline(tmp_path):
    preset = tiny.preset(epochs=1, batch_size=64, warmup_steps=0, dtype="float64", **STBP)
    data = tiny.data(20)
    result = loop.train(preset, data, out=tmp_path, seed=5)
    params = preset.network.init(loop.generator(5, "init"))
    rng = loop.generator(5, "batch", 0, 0)
    x, y = evaluation.load_batch(preset, data, "train", loop.generator(5, "order", 0).permutation(20), rng=rng)
    frozen = freeze(preset.network, params, x, training=True, rng=rng)
    rates = simulate(frozen, x, preset.recipe.n_steps, record=True)
    _, d_logits = cross_entropy(read_out(frozen, rates), y)
    surrogate = Surrogate("triangle", 0.8)
    back = backward_through_time(frozen, x, rates, d_logits, surrogate=surrogate, through_reset=False)
    for name in preset.network.trainable:
        v = back.gradients[name] + 5e-4 * params[name]
        np.testing.assert_allclose(result.checkpoint.velocity[name], v, rtol=1e-12, atol=1e-14)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["solver_iterations"] is line["solver_residual"] is line["certificate"] is None
    assert line["contraction"] == pytest.approx(contraction(frozen))
    recipe = json.loads((tmp_path / "run.json").read_text())["preset"]["recipe"]
    assert {name: recipe[name] for name in STBP} == STBP


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path):
    preset, data = tiny.preset(epochs=2, **STBP), tiny.data()
    whole = loop.train(preset, data, out=tmp_path / "whole")
    count = iter(range(100))
    stopped = loop.train(preset, data, out=tmp_path / "parts", callback=lambda *_: next(count) == 5)
    assert stopped.checkpoint.step > 0
    assert checkpoint.load(tmp_path / "parts").preset.recipe.method == "stbp"
    with pytest.raises(ValueError, match=r"another training \(method 'stbp' there, 'ide' here"):
        loop.train(tiny.preset(epochs=2), data, out=tmp_path / "parts", resume=True)
    resumed = loop.train(preset, data, out=tmp_path / "parts", resume=True)
    assert tiny.same(resumed.checkpoint.params, whole.checkpoint.params)
    assert tiny.same(resumed.checkpoint.velocity, whole.checkpoint.velocity)


def test_the_command_line_trains_by_it(tmp_path, capsys):
    train = ["train", "digits", "--epochs", "1", "--limit", "64", "--seed", "3", "--out", str(tmp_path / "run")]
    assert main([*train, "--surrogate", "sigmoid"]) == 2
    assert "are of --method stbp" in capsys.readouterr().err
    options = ["--method", "stbp", "--surrogate", "sigmoid", "--surrogate-width", "0.5", "--detach-reset"]
    assert main([*train, *options]) == 0
    recipe = checkpoint.load(tmp_path / "run").preset.recipe
    found = recipe.method, recipe.surrogate, recipe.surrogate_width, recipe.through_reset
    assert found == ("stbp", "sigmoid", 0.5, False)
    assert _common.SURROGATES == SURROGATES


def test_its_steps_are_timed_by_stage():
    (timing,) = steps.run(tiny.preset(method="stbp"), warm_up=1, repeats=1, rate=1e9)
    assert list(timing.stages) == ["freeze", "rollout", "readout", "through time", "pull back", "update"]
    assert timing.sweeps == 3


@pytest.mark.parametrize("name", presets.names())
def test_every_recipe_takes_a_step_by_it(name):
    """In small, in the recipe's dtype: all stays finite, and has a gradient but biases before a normalisation."""
    preset = small.shrink(presets.load(name))
    preset = replace(preset, recipe=replace(preset.recipe, method="stbp", n_steps=8))
    params, x, y = small.draw(preset, 6)
    # So that every population fires.
    params = {part: value + 0.5 if part.endswith("bn_bias") else value for part, value in params.items()}
    params = {part: np.asarray(value, np.float32) for part, value in params.items()}
    velocity = {part: np.zeros_like(params[part]) for part in preset.network.trainable}
    rng = np.random.default_rng(0)
    done = training_step(preset, params, velocity, x.astype(np.float32), y, rate=0.1, rng=rng)
    assert all(np.isfinite(array).all() for array in done.params.values())
    for part in preset.network.trainable:
        assert np.abs(done.backward.gradients[part]).max() > 1e-7 or part.endswith(".bias"), part
