"""The method in plain NumPy, one function an equation: the specification that the rest of the package is held against.

Source: https://arxiv.org/abs/2109.14247. Populations l of n_l neurons, B samples, every connection a dense matrix, row
index the receiving neuron; a state is a list of arrays (B, n_l). Read from the top: a spiking network, its average
rates, where they settle, the gradient from there alone, parameters to matrices and back, ``gradient``, all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

State = list[NDArray]  # (B, n_l) per population
Params = Mapping[str, NDArray]
Norm = tuple[NDArray, NDArray, NDArray, NDArray]  # weight, bias, mean and variance of (BN), spread over neurons
EPSILON, MOMENTUM = 1e-5, 0.1  # of batch normalisation: added to variances; weight of a batch in running statistics


class Map(NamedTuple):
    """A connection as the network uses it: s ↦ keep ⊙ (BN)(W s + b), from ``source``, −1 for the input."""

    source: int
    target: int
    W: NDArray  # (n_to, n_from)
    b: NDArray  # (n_to,)
    norm: Norm | None
    keep: NDArray  # (B, n_to), ones without dropout


class Network(NamedTuple):
    """Populations of the given sizes, the maps between them, and λ and V_th: a number for all, or one for each."""

    sizes: Sequence[int]
    maps: Sequence[Map]
    leak: float | Sequence[float]
    v_th: float | Sequence[float]


def own(constant: Any, i: int) -> Any:
    """λ or V_th of population i."""
    return constant[i] if isinstance(constant, Sequence) else constant


def output(m: Map, s: NDArray) -> NDArray:
    """keep ⊙ (BN)(W s + b), (B, n_to)."""
    z = s @ m.W.T + m.b
    return m.keep * (z if m.norm is None else normalise(z, *m.norm))


def arriving(net: Network, i: int, x: NDArray, before: State, now: State) -> NDArray:
    """W s + F x + b of population i, (B, n_i): forward connections read what is there now, feedback what was before.

    (LAYERS) a^1 = σ((W^1 a^N + F^1 x + b^1)/V_th), a^{l+1} = σ((F^{l+1} a^l + b^{l+1})/V_th)
    """
    total = np.zeros((len(x), net.sizes[i]))
    for m in net.maps:
        if m.target == i:
            total = total + output(m, x if m.source < 0 else now[m.source] if m.source < i else before[m.source])
    return total


def step(net: Network, u: State, s: State, x: NDArray) -> tuple[State, State]:
    """u[t+1] and s[t+1] from u[t], s[t] and x[t], (B, n_in).

    (STEP) v = λ u[t] + W s[t] + F x[t] + b; s[t+1] = H(v − V_th), H(0) = 1; u[t+1] = v − V_th s[t+1]; u[0] = s[0] = 0
    """
    u_next, s_next = State(), State()
    for i in range(len(net.sizes)):
        v = own(net.leak, i) * u[i] + arriving(net, i, x, s, s_next)
        s_next.append(np.where(v >= own(net.v_th, i), 1.0, 0.0))
        u_next.append(v - own(net.v_th, i) * s_next[i])
    return u_next, s_next


def rollout(net: Network, x: NDArray) -> list[NDArray]:
    """Spikes s[1..T] per population, (B, T, n_l), for an input (B, T, n_in)."""
    rest = [np.zeros((len(x), n)) for n in net.sizes]
    u, s, spikes = rest, rest, []
    for t in range(x.shape[1]):
        u, s = step(net, u, s, x[:, t])
        spikes.append(s)
    return [np.stack([now[i] for now in spikes], axis=1) for i in range(len(net.sizes))]


def average(s: NDArray, leak: float) -> NDArray:
    """The last average of (B, T, n): a[T] of spikes s[1..T], x̄[T−1] of inputs x[0..T−1].

    (RATE) S_t = Σ_{i<t} λ^i; a[t] = (1/S_t) Σ_{τ=1..t} λ^{t−τ} s[τ]; x̄[t] = (1/S_{t+1}) Σ_{τ=0..t} λ^{t−τ} x[τ]
    """
    weights = np.array([leak**age for age in reversed(range(s.shape[1]))])
    return np.einsum("t,btn->bn", weights, s) / weights.sum()


def sweep(net: Network, a: State, x: NDArray) -> tuple[State, State]:
    """One pass through the populations in order: new rates and p = W a + F x + b.

    (FP) a* = σ((W a* + F x* + b)/V_th); σ = clip(·, 0, 1)
    """
    new, p = State(), State()
    for i in range(len(net.sizes)):
        p.append(arriving(net, i, x, a, new))
        new.append(np.clip(p[i] / own(net.v_th, i), 0.0, 1.0))
    return new, p


def equilibrium(net: Network, x: NDArray, n_sweeps: int) -> State:
    """a* for an input (B, n_in) as the limit of sweeps, which converge where (COND) holds."""
    a = [np.zeros((len(x), n)) for n in net.sizes]
    for _ in range(n_sweeps):
        a, _ = sweep(net, a, x)
    return a


def mask(net: Network, a: State, x: NDArray) -> State:
    """m of every population at given rates and input (B, n_in), where p = W a + F x + b.

    (MASK) m = 1 where 0 ≤ p/V_th ≤ 1, else 0; M = diag(m)
    """
    p = [arriving(net, i, x, a, a) for i in range(len(net.sizes))]
    return [np.where((q >= 0) & (q <= own(net.v_th, i)), 1.0, 0.0) for i, q in enumerate(p)]


def block_matrix(net: Network) -> NDArray:
    """All connections between populations as one matrix for each sample, (B, n, n): what W is for a graph."""
    start = np.concatenate([[0], np.cumsum(net.sizes)]).astype(int)
    W = np.zeros((len(net.maps[0].keep), start[-1], start[-1]))
    for m in net.maps:
        if m.source >= 0:
            rows, columns = (slice(start[i], start[i + 1]) for i in (m.target, m.source))
            scale = 1.0 if m.norm is None else m.norm[0] / np.sqrt(m.norm[3] + EPSILON)
            W[:, rows, columns] += (m.keep * scale)[:, :, None] * m.W
    return W


def beta(net: Network, m: State, g: State) -> State:
    """β of all populations from g = ∂L/∂a*.

    (BETA) β* = (I − (1/V_th) Wᵀ M)⁻¹ (∂L/∂a*)ᵀ
    """
    W = block_matrix(net)
    slope = np.concatenate([m[i] / own(net.v_th, i) for i in range(len(m))], axis=1)  # M/V_th, of who receives
    system = np.eye(W.shape[1]) - W.transpose(0, 2, 1) * slope[:, None, :]
    solved = np.linalg.solve(system, np.concatenate(g, axis=1)[:, :, None])[:, :, 0]
    return np.split(solved, np.cumsum(net.sizes)[:-1], axis=1)


def hebb(delta: NDArray, a: NDArray) -> NDArray:
    """∇W summed over the batch: δ = (1/V_th) M β* of the receiving population (B, n_to), a of the sending (B, n_from).

    (HEBB) ∇W = (1/V_th) M β* a*ᵀ, ∇F = (1/V_th) M β* x*ᵀ, ∇b = (1/V_th) M β*
    """
    return delta.T @ a


# From parameters to maps, and back.
class Connection(NamedTuple):
    """What a connection's parameters mean."""

    source: int
    target: int
    tie: NDArray | None  # (n_to, n_from) which weight stands where, −1 for none; a convolution's stand in many places
    fixed: NDArray | None  # the matrix of a connection without weights
    channel: NDArray  # (n_to,) the channel of each receiving neuron, for biases and normalisation
    restriction: str | None  # "operator": ‖·‖₂ of the matrix; "kernel": of the weights as (first axis, rest)


def tied(w: NDArray, tie: NDArray) -> NDArray:
    """The matrix of weights w, (n_to, n_from) as ``tie``: W_ij = w[tie_ij]."""
    return np.where(tie >= 0, w.reshape(-1)[np.maximum(tie, 0)], 0.0)


def untied(d_W: NDArray, tie: NDArray, w: NDArray) -> NDArray:
    """Its transpose, ∂L/∂w in w's shape: sums of ∂L/∂W over all places where a weight stands."""
    return np.bincount(tie[tie >= 0], weights=d_W[tie >= 0], minlength=w.size).reshape(w.shape)


def norm(c: Connection, w: NDArray) -> tuple[float, NDArray]:
    """‖W̄‖₂ and its derivative u vᵀ, in w's shape, from the leading singular pair."""
    tie = np.arange(w.size).reshape(len(w), -1) if c.restriction == "kernel" else np.asarray(c.tie)
    u, values, vt = np.linalg.svd(tied(w, tie))
    return values[0], untied(np.outer(u[:, 0], vt[0]), tie, w)


def restrict(w: NDArray, alpha: float, norm: float) -> NDArray:
    """(NORM) W = α W̄/‖W̄‖₂, α ∈ [−c, c]. W̄ may have any shape."""
    return alpha * w / norm


def restrict_back(d_w: NDArray, w: NDArray, alpha: float, norm: float, d_norm: NDArray) -> tuple[NDArray, float]:
    """∂L/∂W̄ = (α/‖W̄‖) (∂L/∂W − ⟨∂L/∂W, W̄/‖W̄‖⟩ ∂‖W̄‖/∂W̄) and ∂L/∂α = ⟨∂L/∂W, W̄/‖W̄‖⟩."""
    along = float(np.sum(d_w * w) / norm)
    return alpha / norm * (d_w - along * d_norm), along


def moments(z: NDArray, channel: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and biased variance of each channel over batch and positions, spread over the neurons, (n,) each."""
    count = len(z) * np.bincount(channel)
    mean = (np.bincount(channel, weights=z.sum(axis=0)) / count)[channel]
    return mean, (np.bincount(channel, weights=((z - mean) ** 2).sum(axis=0)) / count)[channel]


def normalise(z: NDArray, weight: NDArray, bias: NDArray, mean: NDArray, variance: NDArray) -> NDArray:
    """(BN) y = weight (z − mean)/√(variance + ε) + bias. z is (B, n), the others (n,)."""
    return weight * (z - mean) / np.sqrt(variance + EPSILON) + bias


def normalise_back(delta: NDArray, z: NDArray, norm: Norm, channel: NDArray, from_batch: bool) -> State:
    """∂L/∂z, (B, n), ∂L/∂weight and ∂L/∂bias, (C,), from δ = ∂L/∂y.

    With fixed statistics ∂L/∂z = weight δ/√(variance + ε). With the batch's own, δ first loses its mean and its part
    along ẑ = (z − mean)/√(variance + ε): δ − ⟨δ⟩ − ẑ ⟨δ ẑ⟩, means over a channel.
    """
    weight, _, mean, variance = norm
    z_hat = (z - mean) / np.sqrt(variance + EPSILON)
    d_weight, d_bias = (np.bincount(channel, weights=v.sum(axis=0)) for v in (delta * z_hat, delta))
    if from_batch:
        count = len(z) * np.bincount(channel)
        delta = delta - (d_bias / count)[channel] - z_hat * (d_weight / count)[channel]
    return [weight * delta / np.sqrt(variance + EPSILON), d_weight, d_bias]


def dropout(draws: NDArray, rate: float) -> NDArray:
    """keep = 0 where a uniform draw is below the rate, else 1/(1 − rate): one mask (B, n) for all steps of a batch."""
    return np.where(draws < rate, 0.0, 1.0 / (1.0 - rate))


def freeze(c: Connection, p: Params, x: NDArray, keep: NDArray, training: bool) -> Map:
    """A connection's map from its p; in training the input's is normalised with statistics of the batch x (B, n_in)."""
    w = p.get("weight", np.zeros(0))
    if c.restriction is not None:
        w = restrict(w, float(p["alpha"]), norm(c, w)[0])
    W = np.asarray(c.fixed) if c.tie is None else tied(w, c.tie)
    b = p["bias"][c.channel] if "bias" in p else np.zeros(len(c.channel))
    if "bn_weight" not in p:
        return Map(c.source, c.target, W, b, None, keep)
    mean, variance = p["running_mean"][c.channel], p["running_var"][c.channel]
    if training and c.source < 0:
        mean, variance = moments(x @ W.T + b, c.channel)
    return Map(c.source, c.target, W, b, (p["bn_weight"][c.channel], p["bn_bias"][c.channel], mean, variance), keep)


def pull_back(c: Connection, m: Map, p: Params, delta: NDArray, a: NDArray, training: bool) -> dict[str, Any]:
    """∂L/∂parameters, and running statistics, from ∂L/∂y = δ (B, n_to) of a connection and sent rates a (B, n_from)."""
    found: dict[str, Any] = {}
    delta = m.keep * delta
    if m.norm is not None:
        z = a @ m.W.T + m.b
        from_batch = training and c.source < 0
        delta, found["bn_weight"], found["bn_bias"] = normalise_back(delta, z, m.norm, c.channel, from_batch)
        first = np.unique(c.channel, return_index=True)[1]
        for name, value in zip(("running_mean", "running_var"), moments(z, c.channel), strict=True):
            found[name] = (1 - MOMENTUM) * p[name] + MOMENTUM * value[first]
    if "bias" in p:
        found["bias"] = np.bincount(c.channel, weights=delta.sum(axis=0))
    if c.tie is not None:
        found["weight"] = untied(hebb(delta, a), c.tie, p["weight"])
    if c.restriction is not None:
        parts = p["weight"], float(p["alpha"]), *norm(c, p["weight"])
        found["weight"], found["alpha"] = restrict_back(found["weight"], *parts)
    return found


def read_out(W_o: NDArray, b_o: NDArray, a: NDArray) -> NDArray:
    """(READ) o = W^o a^N[T] + b^o. Shapes (classes, n_N), (classes,) and (B, n_N) to (B, classes)."""
    return a @ W_o.T + b_o


def loss(o: NDArray, y: NDArray) -> tuple[float, NDArray]:
    """Mean cross-entropy L of logits (B, classes) with labels, and ∂L/∂o = (softmax(o) − one-hot(y))/B."""
    shifted = o - o.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(y)), y].mean()), (np.exp(log_p) - np.eye(o.shape[1])[y]) / len(y)


def sgd_step(theta: NDArray, v: NDArray, d_theta: NDArray, eta: float, mu: float, kappa: float) -> State:
    """v ← μ v + (∇L + κ θ), θ ← θ − η v, all of θ's shape."""
    v = mu * v + d_theta + kappa * theta
    return [theta - eta * v, v]


def gradient(
    net: Network, connections: Sequence[Connection], params: Sequence[Params],
    readout: tuple[int, NDArray, NDArray], x: NDArray, y: NDArray, training: bool,
) -> tuple[float, State, State, list[dict[str, Any]]]:  # fmt: skip
    """L, a[T], β and all gradients, the readout's last, for an input (B, T, n_in), labels, and (source, W^o, b^o)."""
    source, W_o, b_o = readout
    x_mean = average(x, own(net.leak, min((m.target for m in net.maps if m.source < 0), default=0)))  # its readers' λ
    a = [average(s, own(net.leak, i)) for i, s in enumerate(rollout(net, x))]
    value, d_o = loss(read_out(W_o, b_o, a[source]), y)
    g = [d_o @ W_o if i == source else np.zeros_like(rates) for i, rates in enumerate(a)]
    m = mask(net, a, x_mean)
    b = beta(net, m, g)
    found = []
    for c, folded, p in zip(connections, net.maps, params, strict=True):
        delta = m[c.target] * b[c.target] / own(net.v_th, c.target)
        found.append(pull_back(c, folded, p, delta, x_mean if c.source < 0 else a[c.source], training))
    return value, a, b, [*found, {"weight": hebb(d_o, a[source]), "bias": d_o.sum(axis=0)}]
