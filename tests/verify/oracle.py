"""The gradient of a single layer with feedback, from dense matrices, with any one mistake planted in it.

Written from the equations with plain NumPy: of the package it uses parameters, drawn masks and rates, and the
synapses' matrices.
"""

from __future__ import annotations

import numpy as np

from ide_ref import simulate
from ide_ref.synapses import to_channels_last


def matrix(synapse, weight):
    return synapse.apply(synapse.to_taps(np.asarray(weight, float)), np.eye(synapse.n_in)).T


def weight_gradient(synapse, d_matrix):
    """⟨d_matrix, ∂matrix/∂w⟩ for every weight w."""
    out = np.zeros(synapse.weight_shape)
    for index in np.ndindex(*synapse.weight_shape):
        unit = np.zeros(synapse.weight_shape)
        unit[index] = 1
        out[index] = np.vdot(d_matrix, matrix(synapse, unit))
    return out


def gradient(frozen, state, x, d_logits, mistake=None):
    """All gradients of "layer (Ffeedback)" at a rollout's rates."""
    net, params = frozen.network, frozen.params
    forward, feedback = net.connections
    v_th, leak = net.neuron.v_th, net.neuron.leak
    n_batch, n_steps = len(x), state.n_steps
    frames = x if net.is_spike_input(x) else np.repeat(x[:, None], n_steps, axis=1)
    weights = leak ** np.arange(n_steps - 1.0, -1, -1)
    weights /= weights.sum()
    x_mean = to_channels_last(np.einsum("t,bt...->b...", weights, frames), net.input_shape)
    a = state.a

    # the maps
    keep_f, keep_w = (np.ones(a.shape) if c.keep is None else c.keep for c in frozen.maps)
    F = matrix(forward.synapse, params["input.weight"])
    channels = forward.synapse.out_shape[0]
    b = np.tile(params["input.bias"], F.shape[0] // channels)
    z = (x_mean @ F.T + b).reshape(-1, channels)
    mean, deviation = z.mean(axis=0), np.sqrt(z.var(axis=0) + 1e-5)
    z_hat = (z - mean) / deviation
    drive = keep_f * (z_hat * params["input.bn_weight"] + params["input.bn_bias"]).reshape(a.shape)
    raw = matrix(feedback.synapse, params["feedback.weight"])
    left, values, right = np.linalg.svd(raw)
    norm, alpha = values[0], float(params["feedback.alpha"])
    W = alpha / norm * raw

    # (MASK), (BETA)
    p = drive + keep_w * (a @ W.T)
    m = ((p >= 0) & (p <= v_th)).astype(float)
    rates = {
        "a[T-1] for a[T]": lambda: average(frozen, x, n_steps - 1, leak),
        "plain mean of spikes": lambda: average(frozen, x, n_steps, 1.0),
        "rates not normalised": lambda: a * sum(leak**i for i in range(n_steps)),
    }.get(mistake, lambda: a)()
    means = {
        "last frame for the mean input": lambda: to_channels_last(frames[:, -1], net.input_shape),
        "input summed": lambda: x_mean * sum(leak**i for i in range(n_steps)),
        "plain mean of the input": lambda: to_channels_last(frames.mean(axis=1), net.input_shape),
    }.get(mistake, lambda: x_mean)()
    d_logits = d_logits * {"sum loss": n_batch, "sign": -1}.get(mistake, 1)
    g = d_logits @ matrix(net.readout.synapse, params["readout.weight"])
    m_beta = np.ones_like(m) if mistake in ("mask missing", "mask missing in beta") else m
    m_hebb = np.ones_like(m) if mistake in ("mask missing", "mask missing in hebb") else m
    back = W
    if mistake == "unflipped kernel":
        back = alpha / norm * matrix(feedback.synapse, params["feedback.weight"][:, :, ::-1, ::-1])
    if mistake == "dropout ignored":
        keep_w, keep_f = np.ones_like(keep_w), np.ones_like(keep_f)
    beta = np.empty_like(g)
    for i in range(n_batch):
        keep = keep_w[i]
        J = m_beta[i][:, None] * keep[:, None] * back / v_th  # ∂f/∂a
        if mistake == "W for its transpose":  # W itself where Wᵀ belongs: columns of Jᵀ keep M and the mask
            J = ((keep[:, None] * W) * m_beta[i] / v_th).T
        if mistake == "mask on the wrong side":
            J = keep[:, None] * back * m_beta[i] / v_th
        eye = np.eye(len(J))
        if mistake == "V_th missing in beta":
            J = J * v_th
        if mistake == "no feedback in beta":
            J = 0 * J
        beta[i] = np.linalg.solve(eye - J.T, g[i])
        if mistake == "damped iteration":
            beta[i] = np.linalg.solve(2 * eye - J.T, g[i])
        if mistake == "one iteration of beta":
            beta[i] = g[i] + J.T @ g[i]
    factor = {"factor V_th missing": v_th, "half of beta": 0.5}.get(mistake, 1.0)
    delta = factor * m_hebb * beta / v_th

    # (HEBB), pulled back
    to_w, to_f = keep_w * delta, keep_f * delta
    dW = rates.T @ to_w if mistake == "outer product transposed" else to_w.T @ rates
    positions = a.shape[1] // channels if mistake == "mean over positions" else 1
    d_weight = weight_gradient(feedback.synapse, dW) / positions
    along = np.vdot(d_weight, params["feedback.weight"]) / norm
    d_norm = weight_gradient(feedback.synapse, np.outer(left[:, 0], right[0])) * (mistake != "projection term missing")
    d_raw = d_weight if mistake == "restriction ignored" else alpha / norm * (d_weight - along * d_norm)

    columns = to_f.reshape(-1, channels)
    if means is not x_mean:
        z_hat = ((means @ F.T + b).reshape(-1, channels) - mean) / deviation
    centred = columns - columns.mean(axis=0) * (mistake != "batch mean missing")
    centred = centred - z_hat * (columns * z_hat).mean(axis=0)
    if mistake == "batch statistics constant":
        centred = columns
    d_z = centred * params["input.bn_weight"] / deviation
    d_input = weight_gradient(forward.synapse, d_z.reshape(a.shape).T @ means)
    d_bn = {"input.bias": d_z.sum(0), "input.bn_weight": (columns * z_hat).sum(0), "input.bn_bias": columns.sum(0)}
    if mistake == "flipped weight gradient":
        # At the end, as a port would, after the right pull-back.
        d_input, d_raw = (g[:, :, ::-1, ::-1] for g in (d_input, d_raw))
    return {
        "input.weight": d_input / positions,
        **{name: g / positions for name, g in d_bn.items()},
        "feedback.weight": d_raw,
        "feedback.alpha": np.asarray(along * positions),
        "readout.weight": weight_gradient(net.readout.synapse, d_logits.T @ rates),
        "readout.bias": d_logits.sum(axis=0),
    }


def average(frozen, x, n_steps, leak):
    """Rates of the first steps, by hand."""
    cut = x[:, :n_steps] if frozen.network.is_spike_input(x) else x
    spikes = simulate(frozen, cut, n_steps, record=True).spikes.astype(float)
    weights = leak ** np.arange(n_steps - 1.0, -1, -1)
    return np.einsum("t,btn->bn", weights / weights.sum(), spikes)
