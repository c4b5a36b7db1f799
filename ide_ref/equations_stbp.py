"""Backpropagation through time in plain NumPy, one function an equation: the specification of `ide_ref.stbp`.

A second page beside `ide_ref.equations`, whose networks, maps and states it takes. The derivative of the spike, which
is 0 or infinite, is replaced by a hump h of area 1 and height 1/w around the threshold. H is the limit of the smooth
steps ∫h for w → 0, and a network that fires by ∫h itself has exactly the gradient that is computed here: so it is
checked. Read from the top: four humps with their steps, the network unrolled, the way back through it, the way back to
the parameters, and ``gradient``, the whole method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ide_ref.equations import (
    EPSILON,
    MOMENTUM,
    Connection,
    Map,
    Network,
    Params,
    State,
    arriving,
    average,
    hebb,
    loss,
    moments,
    norm,
    own,
    read_out,
    restrict_back,
    untied,
)

Curve = Callable[[NDArray], NDArray]


class Surrogate(NamedTuple):
    """h and ∫h as functions of z = v − V_th and of the width w, both in the unit of V_th; ∫h goes from 0 to 1."""

    hump: Callable[[NDArray, float], NDArray]
    smooth_step: Callable[[NDArray, float], NDArray]


def logistic(z: NDArray) -> NDArray:
    """1/(1 + e^{−z}), in the shape of z."""
    return 0.5 + 0.5 * np.tanh(z / 2)


SURROGATES = {
    # h = 1/w for |z| < w/2
    "rectangle": Surrogate(
        lambda z, w: np.where(np.abs(z) < w / 2, 1 / w, 0.0),
        lambda z, w: np.clip(z / w + 0.5, 0, 1),
    ),
    # h = (1/w) max(0, 1 − |z|/w)
    "triangle": Surrogate(
        lambda z, w: np.maximum(0.0, 1 - np.abs(z) / w) / w,
        lambda z, w: np.where(z < 0, np.maximum(0, 1 + z / w) ** 2 / 2, 1 - np.maximum(0, 1 - z / w) ** 2 / 2),
    ),
    # h = (4/w) σ (1 − σ), σ = 1/(1 + e^{−4 z/w})
    "sigmoid": Surrogate(
        lambda z, w: 4 / w * logistic(4 * z / w) * logistic(-4 * z / w),
        lambda z, w: logistic(4 * z / w),
    ),
    # h = (1/w) / (1 + (π z/w)²)
    "arctangent": Surrogate(
        lambda z, w: 1 / w / (1 + (np.pi * z / w) ** 2),
        lambda z, w: np.arctan(np.pi * z / w) / np.pi + 0.5,
    ),
}


def unroll(net: Network, x: NDArray, fires: Curve | Sequence[Curve]) -> tuple[list[State], list[State]]:
    """v[1..T], the potentials before their reset, and s[1..T] = fires(v − V_th), for an input (B, T, n_in): (STEP).

    Where V_th differs between populations, so may the width of the curve: one may be given for each.
    """
    potentials, spikes = [], []
    u = s = [np.zeros((len(x), n)) for n in net.sizes]
    for t in range(x.shape[1]):
        v, now = State(), State()
        for i in range(len(net.sizes)):
            v.append(own(net.leak, i) * u[i] + arriving(net, i, x[:, t], s, now))
            now.append(own(fires, i)(v[i] - own(net.v_th, i)))
        u, s = [v[i] - own(net.v_th, i) * now[i] for i in range(len(v))], now
        potentials.append(v)
        spikes.append(s)
    return potentials, spikes


def transposed(m: Map, delta: NDArray) -> NDArray:
    """Wᵀ δ of a connection with its normalisation and dropout: (B, n_to) to (B, n_from)."""
    scale = 1.0 if m.norm is None else m.norm[0] / np.sqrt(m.norm[3] + EPSILON)
    return (m.keep * scale * delta) @ m.W


def back_through_time(
    net: Network, potentials: list[State], g: State, hump: Curve | Sequence[Curve], through_reset: bool = True
) -> list[State]:
    """δ[1..T], δ_l[t] = ∂L/∂v_l[t], for a loss of the average rates with g = ∂L/∂a[T].

    (BPTT) δ_l[t] = λ δ_l[t+1] + h(v_l[t] − V_th) (∂L/∂s_l[t] − V_th λ δ_l[t+1]);
    ∂L/∂s_l[t] = (λ^{T−t}/S_T) g_l + Σ_{l→k} W_klᵀ δ_k[t or t+1]; δ[T+1] = 0

    Forward connections bring δ_k[t], feedback δ_k[t+1]. λ δ_l[t+1] is ∂L/∂u_l[t]; without the derivative of the reset,
    u = v − V_th s, its second place falls away.
    """
    T = len(potentials)
    weights = [np.array([own(net.leak, i) ** (T - t) for t in range(1, T + 1)]) for i in range(len(net.sizes))]
    following = [np.zeros_like(v) for v in potentials[0]]
    found = []
    for t in range(T - 1, -1, -1):
        now = list(following)
        for i in range(len(net.sizes) - 1, -1, -1):
            d_u = own(net.leak, i) * following[i]
            d_s = weights[i][t] / weights[i].sum() * g[i]
            for m in net.maps:
                if m.source == i:
                    d_s = d_s + transposed(m, now[m.target] if m.target > i else following[m.target])
            if through_reset:
                d_s = d_s - own(net.v_th, i) * d_u
            now[i] = d_u + own(hump, i)(potentials[t][i] - own(net.v_th, i)) * d_s
        found.append(now)
        following = now
    return found[::-1]


def pull_back(
    c: Connection, m: Map, p: Params, delta: NDArray, s: NDArray, mean: NDArray, from_batch: bool
) -> dict[str, Any]:
    """∂L/∂parameters, and running statistics, of a connection: δ of its target (B, T, n_to), s sent (B, T, n_from).

    ∇W = Σ_t δ[t] s[t]ᵀ, ∇b = Σ_t δ[t]. Statistics of normalisation are those of z̄ = W s̄ + b, s̄ the average rates
    ``mean``; where they are the batch's own, the gradient passes through them to z̄.
    """
    found: dict[str, Any] = {}
    delta = m.keep[:, None] * delta
    d_W = np.zeros_like(m.W)
    d_b = np.zeros(len(c.channel))
    if m.norm is not None:
        z, z_mean = s @ m.W.T + m.b, mean @ m.W.T + m.b
        own = moments(z_mean, c.channel)
        centre, variance = own if from_batch else m.norm[2:]
        deviation = np.sqrt(variance + EPSILON)
        count = np.bincount(c.channel)
        d_weight = np.bincount(c.channel, weights=(delta * (z - centre) / deviation).sum(axis=(0, 1)))
        d_bias = np.bincount(c.channel, weights=delta.sum(axis=(0, 1)))
        delta = m.norm[0] * delta / deviation
        if from_batch:
            along = (d_bias / count)[c.channel] + (z_mean - centre) / deviation * (d_weight / count)[c.channel]
            d_z_mean = -m.norm[0] / deviation * along / len(z)
            d_W = d_W + hebb(d_z_mean, mean)
            d_b = d_b + d_z_mean.sum(axis=0)
        found["bn_weight"], found["bn_bias"] = d_weight, d_bias
        first = np.unique(c.channel, return_index=True)[1]
        for name, value in zip(("running_mean", "running_var"), own, strict=True):
            found[name] = (1 - MOMENTUM) * p[name] + MOMENTUM * value[first]
    for t in range(s.shape[1]):
        d_W = d_W + hebb(delta[:, t], s[:, t])
    if "bias" in p:
        found["bias"] = np.bincount(c.channel, weights=d_b + delta.sum(axis=(0, 1)))
    if c.tie is not None:
        found["weight"] = untied(d_W, c.tie, p["weight"])
    if c.restriction is not None:
        w, alpha = p["weight"], float(p["alpha"])
        found["weight"], found["alpha"] = restrict_back(found["weight"], w, alpha, *norm(c, w))
    return found


def gradient(
    net: Network, connections: Sequence[Connection], params: Sequence[Params],
    readout: tuple[int, NDArray, NDArray], x: NDArray, y: NDArray, training: bool,
    *, fires: Curve | Sequence[Curve], hump: Curve | Sequence[Curve], through_reset: bool = True,
    hidden_from_batch: bool = False,
) -> tuple[float, State, State, list[dict[str, Any]]]:  # fmt: skip
    """L, a[T], Σ_t δ[t] and all gradients, the readout's last, for inputs (B, T, n_in), see `equations.gradient`.

    ``hidden_from_batch``: gradients of hidden connections pass through statistics, too, as if those were the batch's.
    """
    source, W_o, b_o = readout
    potentials, spikes = unroll(net, x, fires)
    sent = [np.stack([now[i] for now in spikes], axis=1) for i in range(len(net.sizes))]
    a = [average(s, own(net.leak, i)) for i, s in enumerate(sent)]
    x_mean = average(x, own(net.leak, min((m.target for m in net.maps if m.source < 0), default=0)))  # its readers' λ
    value, d_o = loss(read_out(W_o, b_o, a[source]), y)
    g = [np.zeros_like(rates) for rates in a]
    g[source] = d_o @ W_o
    errors = back_through_time(net, potentials, g, hump, through_reset)
    found = []
    for c, folded, p in zip(connections, net.maps, params, strict=True):
        delta = np.stack([now[c.target] for now in errors], axis=1)
        before = x if c.source < 0 else sent[c.source]
        if c.source >= c.target:
            before = np.concatenate([np.zeros_like(before[:, :1]), before[:, :-1]], axis=1)
        mean = x_mean if c.source < 0 else a[c.source]
        from_batch = training and (c.source < 0 or hidden_from_batch)
        found.append(pull_back(c, folded, p, delta, before, mean, from_batch))
    total = [np.sum([now[i] for now in errors], axis=0) for i in range(len(net.sizes))]
    return value, a, total, [*found, {"weight": hebb(d_o, a[source]), "bias": d_o.sum(axis=0)}]
