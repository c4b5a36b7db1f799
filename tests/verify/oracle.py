"""The gradient of a single layer with feedback by the page of equations, with any one mistake planted in it."""

from __future__ import annotations

import numpy as np

from ide_ref import equations
from ide_ref.verify.specification import specified


def gradient(frozen, state, x, d_logits, mistake=None):
    """All gradients of "layer (Ffeedback)" at a rollout's rates."""
    spec = specified(frozen, x, state.n_steps)
    net, leak, v_th, a = spec.net, spec.net.leak, spec.net.v_th, state.a
    (to_input, to_self), (forward, feedback) = spec.connections, net.maps
    w, alpha = spec.params[1]["weight"], float(spec.params[1]["alpha"])
    norm, d_norm = equations.norm(to_self, w)
    x_mean, total = equations.average(spec.x, leak), sum(leak**i for i in range(state.n_steps))

    # (MASK), (BETA)
    (m,) = equations.mask(net, [a], x_mean)
    rates = {
        "a[T-1] for a[T]": lambda: equations.average(equations.rollout(net, spec.x[:, :-1])[0], leak),
        "plain mean of spikes": lambda: equations.average(equations.rollout(net, spec.x)[0], 1.0),
        "rates not normalised": lambda: a * total,
    }.get(mistake, lambda: a)()
    means = {
        "last frame for the mean input": spec.x[:, -1],
        "input summed": x_mean * total,
        "plain mean of the input": spec.x.mean(axis=1),
    }.get(mistake, x_mean)
    d_logits = d_logits * {"sum loss": len(x), "sign": -1}.get(mistake, 1)
    g = d_logits @ spec.readout[1]
    m_beta = np.ones_like(m) if mistake in ("mask missing", "mask missing in beta") else m
    m_hebb = np.ones_like(m) if mistake in ("mask missing", "mask missing in hebb") else m
    back = feedback.W
    if mistake == "unflipped kernel":
        back = alpha / norm * equations.tied(w[:, :, ::-1, ::-1], to_self.tie)
    keep_f, keep_w = (np.ones_like(c.keep) if mistake == "dropout ignored" else c.keep for c in net.maps)
    J = m_beta[:, :, None] * keep_w[:, :, None] * back / v_th  # ∂f/∂a
    if mistake in ("W for its transpose", "mask on the wrong side"):
        J = keep_w[:, :, None] * back * m_beta[:, None] / v_th
    J = J * {"V_th missing in beta": v_th, "no feedback in beta": 0}.get(mistake, 1)
    if mistake != "W for its transpose":  # W itself where Wᵀ belongs: columns of Jᵀ keep M and the mask
        J = J.swapaxes(1, 2)
    eye = np.eye(a.shape[1]) * (2 if mistake == "damped iteration" else 1)
    beta = np.linalg.solve(eye - J, g[:, :, None])[:, :, 0]
    if mistake == "one iteration of beta":
        beta = g + (J @ g[:, :, None])[:, :, 0]
    delta = {"factor V_th missing": v_th, "half of beta": 0.5}.get(mistake, 1.0) * m_hebb * beta / v_th

    # (HEBB), pulled back
    dW = equations.hebb(keep_w * delta, rates)
    dW = dW.T if mistake == "outer product transposed" else dW
    channel = to_input.channel
    positions = a.shape[1] // len(np.unique(channel)) if mistake == "mean over positions" else 1
    d_weight = equations.untied(dW, to_self.tie, w) / positions
    d_norm = d_norm * (mistake != "projection term missing")
    d_raw, along = equations.restrict_back(d_weight, w, alpha, norm, d_norm)
    d_raw = d_weight if mistake == "restriction ignored" else d_raw

    to_f, z = keep_f * delta, means @ forward.W.T + forward.b
    from_batch = mistake != "batch statistics constant"
    d_z, d_bn_weight, d_bn_bias = equations.normalise_back(to_f, z, forward.norm, channel, from_batch)
    if mistake == "batch mean missing":
        scale = forward.norm[0] / np.sqrt(forward.norm[3] + equations.EPSILON)
        d_z = d_z + scale * equations.moments(to_f, channel)[0]
    d_input = equations.untied(equations.hebb(d_z, means), to_input.tie, spec.params[0]["weight"])
    if mistake == "flipped weight gradient":
        # At the end, as a port would, after the right pull-back.
        d_input, d_raw = (g[:, :, ::-1, ::-1] for g in (d_input, d_raw))
    d_readout = equations.hebb(d_logits, rates)
    return {
        "input.weight": d_input / positions,
        "input.bias": np.bincount(channel, weights=d_z.sum(axis=0)) / positions,
        "input.bn_weight": d_bn_weight / positions,
        "input.bn_bias": d_bn_bias / positions,
        "feedback.weight": d_raw,
        "feedback.alpha": np.asarray(along * positions),
        "readout.weight": equations.untied(d_readout, spec.readout_tie, d_readout),
        "readout.bias": d_logits.sum(axis=0),
    }
