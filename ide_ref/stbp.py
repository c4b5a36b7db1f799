"""Backpropagation through time with a surrogate derivative: the baseline that implicit differentiation is held against.

The same maps, the same rollout (STEP), the same readout of the same average rates (READ), and the same way from maps to
parameters; only the gradient is another. It goes back through every step, so every step has to be kept: memory grows
with T. `ide_ref.equations_stbp` is its specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, _threads, constraints
from ide_ref._kernels import memory
from ide_ref.maps import AffineMap, Frozen, Pullback
from ide_ref.network import Params
from ide_ref.neurons import Neuron
from ide_ref.simulation import Rates
from ide_ref.synapses import accumulate, to_channels_last

SURROGATES = ("rectangle", "triangle", "sigmoid", "arctangent")
"""Names of the surrogate derivatives, see :class:`Surrogate`."""

BLOCK = 1 << 15
"""Numbers of a population that are taken together: what is computed in between stays in the second-level cache."""


@dataclass(frozen=True)
class Surrogate:
    """What stands for the derivative of the spike s = H(v − V_th): a hump h of z = v − V_th around the threshold.

    All have area 1, as the derivative of H has, and height 1/w at the threshold, w = ``width`` V_th:

    - *rectangle*: h(z) = 1/w for |z| < w/2, else 0. Wu et al. (2018), "Spatio-temporal backpropagation for training
      high-performance spiking neural networks", h₁ with a₁ = w.
    - *triangle*: h(z) = (1/w) max(0, 1 − |z|/w). Wu et al. (2018), h₂ with a₂ = 4/w²; Bellec et al. (2018), "Long
      short-term memory and learning-to-learn in networks of spiking neurons", damp it by 0.3.
    - *sigmoid*: h(z) = (4/w) σ (1 − σ), σ = 1/(1 + e^{−4 z/w}). Wu et al. (2018), h₃ with a₃ = w/4. Zenke and Ganguli
      (2018), "SuperSpike", take 1/(1 + c |z|)² instead, whose tails are heavier.
    - *arctangent*: h(z) = (1/w)/(1 + (π z/w)²). Fang et al. (2021), "Incorporating learnable membrane time constant to
      enhance learning of spiking neural networks", with α = 2/w.

    Parameters
    ----------
    name : str
        One of :data:`SURROGATES`.
    width : float
        In units of V_th, so that a network whose weights and V_th are scaled together keeps its gradient's
        direction. With 1 the height is 1/V_th, the slope of σ in (MASK).
    """

    name: str = "rectangle"
    width: float = 1.0

    def __post_init__(self) -> None:
        if not _checks.is_one_of(self.name, SURROGATES):
            raise ValueError(f"name is {self.name!r}; expected one of {', '.join(SURROGATES)}")
        _checks.positive("width", self.width)

    def hump(self, z: NDArray, v_th: float) -> NDArray:
        """h at distances z from the threshold, in their shape and dtype, per unit of potential."""
        w = float(self.width * v_th)
        if self.name == "rectangle":
            return (np.abs(z) < w / 2) * z.dtype.type(1 / w)
        if self.name == "triangle":
            return np.maximum(1 - np.abs(z) / w, 0) / w
        if self.name == "sigmoid":
            # σ (1 − σ) = (1 − tanh²)/4 at half the argument, and no exponential overflows.
            return (1 - np.square(np.tanh(z * (2 / w)))) / w
        return 1 / (w * (1 + np.square(z * (np.pi / w))))


@dataclass(frozen=True)
class ThroughTime:
    """Gradients of one batch.

    Attributes
    ----------
    gradients : dict
        ∂L/∂ of every trainable parameter, in its shape.
    statistics : dict
        Running statistics after this batch, as of :func:`ide_ref.backward`.
    delta : (B, n) array
        Σ_t δ[t] of all populations, channels-last order: what (1/V_th) M β is for the implicit gradient.
    frozen : Frozen
        The network it belongs to.
    """

    gradients: Params
    statistics: Params
    delta: NDArray
    frozen: Frozen


@_threads.fitted
def backward_through_time(
    frozen: Frozen,
    x: NDArray,
    rates: Rates,
    d_logits: NDArray,
    *,
    surrogate: Surrogate | None = None,
    through_reset: bool = True,
    lap: Callable[[str], None] = lambda stage: None,
) -> ThroughTime:
    """Gradient of a loss by backpropagation through time (STBP).

    With h in place of the derivative of H, and δ_l[t] = ∂L/∂v_l[t], v the potential before the reset,

    (BPTT) δ_l[t] = λ δ_l[t+1] + h(v_l[t] − V_th) (∂L/∂s_l[t] − V_th λ δ_l[t+1]);
    ∂L/∂s_l[t] = (λ^{T−t}/S_T) g_l + Σ_{l→k} W_klᵀ δ_k[t or t+1]; δ[T+1] = 0

    over t = T..1, populations in reverse: forward connections bring δ_k[t], feedback δ_k[t+1]. Then
    ∇W_kl = Σ_t δ_k[t] s_l[t]ᵀ, with s_l[t−1] for feedback and x[t−1] for the input, and ∇b = Σ_t δ[t].

    The rollout kept B T n (1 + itemsize) bytes for it, see :class:`ide_ref.Recording`: each spike is a byte and each
    potential a float. What this function needs besides, four states (B, n) and a gradient, does not depend on T.

    Parameters
    ----------
    frozen : Frozen
        As used for the forward pass.
    x : (B, *input_shape) or (B, T, *input_shape) array
        Its input.
    rates : Rates
        Of ``simulate(frozen, x, n_steps, record=True)``.
    d_logits : (B, n_classes) array
        ∂L/∂o.
    surrogate : Surrogate, optional
        h; by default the rectangle of width V_th.
    through_reset : bool
        Whether the derivative passes through the reset, u = v − V_th s, as in Wu et al. (2018). Otherwise the spike
        there counts as a constant: the term −V_th λ δ[t+1] above falls away.
    lap : callable
        Called with the name of each stage as it ends: "readout", "through time", "pull back". For clocks.

    Returns
    -------
    ThroughTime

    Raises
    ------
    ValueError
        When shapes do not fit, ``d_logits`` is not finite, or the rates have no recording.

    Notes
    -----
    Batch normalisation, restriction and dropout are those of ``frozen``. A batch's statistics are those of z̄ = W s̄ + b,
    s̄ the average rates or x̄, as in :func:`ide_ref.backward`; where they are used, or a profile asks for it, the
    gradient passes through them. What a profile changes in (BETA) has no place here.
    """
    _checks.kind("frozen", frozen, Frozen)
    _checks.kind("rates", rates, Rates)
    surrogate = Surrogate() if surrogate is None else surrogate
    _checks.kind("surrogate", surrogate, Surrogate)
    x = frozen.check_input(x)
    net, recording = frozen.network, rates.recording
    if recording is None:
        raise ValueError("rates have no recording; expected those of simulate(..., record=True)")
    n_steps, n_batch = rates.n_steps, len(rates.a)
    is_spike_input = net.is_spike_input(x)
    if len(x) != n_batch or (is_spike_input and x.shape[1] != n_steps):
        raise ValueError(
            f"x has shape {x.shape}; expected the input of the rates, {n_batch} samples and {n_steps} steps"
        )
    g, gradients = frozen.read_out_pull_back(rates, frozen.check_d_logits(d_logits, n_batch))
    lap("readout")

    read = net.slice_of(net.readout.source)
    reader = net.neurons[net.index(net.readout.source)]
    g = g[:, read] / g.dtype.type(reader.total_weight(n_steps))
    # What has come back to s[t], and, of populations that the way back has passed, to s[t−1] already.
    d_s, delta, total = (memory.zeros(rates.a.shape, frozen.dtype) for _ in range(3))
    products: list[NDArray | None] = [None] * len(net.edges)
    for t in range(n_steps, 0, -1):
        d_s[:, read] += g
        g *= g.dtype.type(reader.leak)
        for target in range(len(net.populations) - 1, -1, -1):
            columns = net.slice_of(target)
            there = delta[:, columns]
            u, s = recording.u[:, t - 1, columns], recording.s[:, t - 1, columns]
            _through_neuron(net.neurons[target], surrogate, through_reset, u, s, d_s[:, columns], there)
            for i, source in net.into(target):
                m = frozen.simulated[i]
                # Feedback brought the spikes of the step before; s[0] = 0.
                sent_at = t if source < target else t - 1
                if source >= 0 and sent_at > 0:
                    sender = net.slice_of(source)
                    m.adjoint(there, d_s[:, sender])
                    sent = memory.copied(recording.s[:, sent_at - 1, sender], frozen.dtype)
                    _add_product(products, i, m, there, sent)
                elif source < 0 and is_spike_input:
                    _add_product(products, i, m, there, to_channels_last(x[:, t - 1], net.input_shape))
        total += delta
    # Both are states, 80 MB in the larger networks, and the sums are all that is needed now; `there` lies in delta.
    del d_s, delta, there
    lap("through time")

    statistics = dict(frozen.statistics)
    inputs = to_channels_last(rates.x_mean, net.input_shape)
    for i, (source, target) in enumerate(net.edges):
        mean = inputs if source < 0 else rates.a[:, net.slice_of(source)]
        there = total[:, net.slice_of(target)]
        if source < 0 and not is_spike_input:
            # The input is the same at each step.
            found, updated = frozen.pullbacks[i].gradients(frozen.maps[i], there, mean)
        else:
            found, updated = _pull_back(frozen.pullbacks[i], frozen.maps[i], products[i], there, mean)
        gradients.update(found)
        statistics.update(updated)
    lap("pull back")
    return ThroughTime(gradients, statistics, total, frozen)


def _through_neuron(
    neuron: Neuron, surrogate: Surrogate, through_reset: bool, u: NDArray, s: NDArray, d_s: NDArray, delta: NDArray
) -> None:
    """(BPTT) of one population: δ[t+1] becomes δ[t], in place; d_s = ∂L/∂s[t] is used up and becomes 0."""
    share = max(1, BLOCK // delta.shape[1])
    for first in range(0, len(delta), share):
        rows = slice(first, first + share)
        d_u, d_spike = delta[rows], d_s[rows]
        # u is v after the reset: V_th less where a spike was.
        z = np.where(s[rows], u[rows], u[rows] - u.dtype.type(neuron.v_th))
        d_u *= d_u.dtype.type(neuron.leak)
        if through_reset:
            d_spike -= d_u.dtype.type(neuron.v_th) * d_u
        d_spike *= surrogate.hump(z, neuron.v_th)
        d_u += d_spike
        d_spike[...] = 0


def _add_product(products: list[NDArray | None], i: int, m: AffineMap, delta: NDArray, sent: NDArray) -> None:
    """Add δ[t] s[t]ᵀ along the taps to what connection i has of earlier steps, where something is learned from it."""
    if not m.synapse.weight_shape and m.norm is None:
        return
    found = m.synapse.hebbian(delta if m.keep is None else constraints.multiply(m.keep, delta), sent)
    products[i] = accumulate(found, products[i])


def _pull_back(
    pullback: Pullback, m: AffineMap, product: NDArray | None, delta: NDArray, mean: NDArray
) -> tuple[Params, Params]:
    """Gradients of a connection's parameters, and its running statistics, from sums over time.

    Each y[t] = keep ⊙ BN(z[t]), z[t] = W s[t] + b, so H = Σ_t (keep ⊙ δ[t]) s[t]ᵀ and D = Σ_t keep ⊙ δ[t] tell all: per
    channel, Σ_t δ[t] z[t] = ⟨W, H⟩ + b D, and no z[t] is needed. With d = √(variance + ε)

        ∂L/∂bn_bias = D,  ∂L/∂bn_weight = (⟨W, H⟩ + b D − mean D)/d,  ∂L/∂W = scale ⊙ H,  ∂L/∂b = scale D.

    Statistics that are the batch's own, of z̄ = W s̄ + b with n numbers per channel, add

        ∂L/∂z̄ = −(scale/n) (D + ∂L/∂bn_weight (z̄ − mean)/d).

    ``product`` is H, as taps, or None for 0; ``delta`` is Σ_t δ[t], (B, n_to), and ``mean`` s̄ or x̄, (B, n_from).
    """
    c, n_channels = pullback.connection, m.synapse.out_shape[0]
    gradients: Params = {}
    statistics: Params = {}
    if product is None:
        product = np.zeros(m.taps.shape, m.taps.dtype)
    if m.keep is not None:
        delta = constraints.multiply(m.keep, delta)
    sums = constraints.channel_sums(delta, n_channels)
    if (normalisation := pullback.normalisation(m, mean)) is not None:
        norm, z, statistics = normalisation
        centre = norm.mean.astype(np.float64) - (0.0 if m.bias is None else m.bias)
        along = (m.taps * product).reshape(-1, n_channels).sum(axis=0, dtype=np.float64)
        d_weight = (along - centre * sums) / norm.deviation
        gradients[f"{c.name}.bn_weight"] = d_weight.astype(delta.dtype)
        gradients[f"{c.name}.bn_bias"] = sums.astype(delta.dtype)
        product = product * np.tile(norm.scale, product.shape[-1] // n_channels)
        sums = norm.scale * sums
        if norm.from_batch:
            per_z = -norm.scale / (z.size // n_channels) * d_weight / norm.deviation
            constant = -sums / (z.size // n_channels) - norm.mean * per_z
            d_z = constraints.affine(z, per_z.astype(delta.dtype), constant.astype(delta.dtype), None)
            product = product + m.synapse.hebbian(d_z, mean)
            sums = sums + constraints.channel_sums(d_z, n_channels)
    if c.bias:
        gradients[f"{c.name}.bias"] = sums.astype(delta.dtype)
    if c.synapse.weight_shape:
        gradients.update(pullback.of_weight(c.synapse.from_taps(product)))
    return gradients, statistics
