"""A port of the method to PyTorch, written from the equations; runs wherever PyTorch runs.

``Port(case).run()`` computes every stage of a conformance case. Each equation is one method, so that a wrong
one can be put in its place. Labels are those of the documentation's equation index.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight


class Port:
    """One case on a device: parameters, input and masks as tensors."""

    def __init__(self, case, device="cpu"):
        self.config, self.device = case.config, device
        self.params = {name: self.tensor(value) for name, value in case.params.items()}
        self.keep = {name: self.tensor(value) for name, value in case.keep.items()}
        self.x, self.y = self.tensor(case.x), self.tensor(case.y)
        self.leak, self.v_th = self.config["neuron"]["leak"], self.config["neuron"]["v_th"]
        self.n_steps, self.spiking = self.config["n_steps"], self.config["input"] == "spikes"
        self.order = [p["name"] for p in self.config["populations"]]
        self.shape = {p["name"]: tuple(p["shape"]) for p in self.config["populations"]}
        self.shape["input"] = tuple(self.config["input_shape"])
        self.connections = self.config["connections"]

    def tensor(self, array):
        return torch.tensor(array, device=self.device)

    def param(self, c, part):
        return self.params.get(f"{c['name']}.{part}")

    # --- linear maps -----------------------------------------------------------------------------

    def apply(self, c, weight, s):
        """W s"""
        if c["kind"] == "conv":
            return functional.conv2d(s, weight, stride=c["stride"], padding=c["padding"])
        if c["kind"] == "conv_transpose":
            options = {name: c[name] for name in ("stride", "padding", "output_padding")}
            return functional.conv_transpose2d(s, weight, **options)
        return (s.flatten(1) @ weight.T).unflatten(1, self.shape[c["target"]])

    def transpose(self, c, weight, v):
        """Wᵀ v"""
        if c["kind"] == "conv":
            size = (len(v), *self.shape[c["source"]])
            return conv2d_input(size, weight, v, stride=c["stride"], padding=c["padding"])
        if c["kind"] == "conv_transpose":
            return functional.conv2d(v, weight, stride=c["stride"], padding=c["padding"])
        return (v.flatten(1) @ weight).unflatten(1, self.shape[c["source"]])

    def outer(self, c, post, pre, weight):
        """Σ post preᵀ, summed over positions: (HEBB) without its factor."""
        if c["kind"] == "conv":
            return conv2d_weight(pre, weight.shape, post, stride=c["stride"], padding=c["padding"])
        if c["kind"] == "conv_transpose":
            return conv2d_weight(post, weight.shape, pre, stride=c["stride"], padding=c["padding"])
        return post.flatten(1).T @ pre.flatten(1)

    # --- (NORM), (BN) ----------------------------------------------------------------------------

    def singular(self, c):
        """‖W̄‖₂ of the map and its gradient, from a dense matrix; a large port would iterate."""
        raw = self.param(c, "weight").double()
        size = self.shape[c["source"]]
        unit = torch.eye(torch.Size(size).numel(), dtype=raw.dtype, device=self.device)
        columns = self.apply(c, raw, unit.unflatten(1, size))
        left, values, right = torch.linalg.svd(columns.flatten(1).T)
        u = left[:, 0].unflatten(0, self.shape[c["target"]])[None]
        return values[0], self.outer(c, u, right[0].unflatten(0, size)[None], raw)

    def restricted(self, c):
        """W = α W̄ / ‖W̄‖, (NORM)"""
        weight = self.param(c, "weight")
        if c["restriction"] is None:
            return weight
        return (self.param(c, "alpha").double() / self.singular(c)[0] * weight.double()).to(weight.dtype)

    def restrict_back(self, c, d_weight):
        """From ∂L/∂W to ∂L/∂W̄ and ∂L/∂α"""
        raw, alpha = self.param(c, "weight"), self.param(c, "alpha")
        norm, d_norm = self.singular(c)
        along = (d_weight.double() * raw.double()).sum() / norm
        d_raw = alpha.double() / norm * (d_weight.double() - along * d_norm)
        return d_raw.to(raw.dtype), along.to(raw.dtype)

    def over_channels(self, v):
        return v.transpose(0, 1).flatten(1)

    def spread(self, v, like):
        return v.view(1, -1, *[1] * (like.dim() - 2))

    def statistics(self, c, z):
        columns = self.over_channels(z)
        return columns.mean(1), columns.var(1, unbiased=False)

    def prepare(self):
        """Weights and normalisation of every connection, fixed for the batch: the same for both passes."""
        self.weight = {c["name"]: self.restricted(c) for c in self.connections}
        self.mean, self.deviation = {}, {}
        for c in self.connections:
            if c["batch_norm"]:
                mean, variance = self.param(c, "running_mean"), self.param(c, "running_var")
                if c["source"] == "input":
                    mean, variance = self.statistics(c, self.raw(c, self.x_mean))
                self.mean[c["name"]] = mean
                self.deviation[c["name"]] = torch.sqrt(variance + self.config["bn"]["epsilon"])

    def raw(self, c, s):
        """z = W s + b"""
        z = self.apply(c, self.weight[c["name"]], s)
        return z if not c["bias"] else z + self.spread(self.param(c, "bias"), z)

    def normalised(self, c, z):
        mean, deviation = (self.spread(part[c["name"]], z) for part in (self.mean, self.deviation))
        return (z - mean) / deviation

    def send(self, c, s):
        """What a connection brings: keep ⊙ BN(W s + b)"""
        out = self.raw(c, s)
        if c["batch_norm"]:
            scale, shift = (self.spread(self.param(c, part), out) for part in ("bn_weight", "bn_bias"))
            out = scale * self.normalised(c, out) + shift
        return out * self.keep.get(c["name"], 1)

    def send_back(self, c, v):
        """Its transpose: Wᵀ (scale ⊙ keep ⊙ v)"""
        v = v * self.keep.get(c["name"], 1)
        if c["batch_norm"]:
            v = v * self.spread(self.param(c, "bn_weight") / self.deviation[c["name"]], v)
        return self.transpose(c, self.weight[c["name"]], v)

    # --- forward ---------------------------------------------------------------------------------

    def average(self, train):
        """Weighted mean over time, (RATE): (B, T, ...) to (B, ...)"""
        n_steps = train.shape[1]
        weights = self.leak ** torch.arange(n_steps - 1, -1, -1, dtype=torch.float64, device=self.device)
        weights = (weights / weights.sum()).to(self.x.dtype)
        return torch.tensordot(train.to(self.x.dtype), weights, ([1], [0]))

    def fires(self, v):
        """H(v − V_th), H(0) = 1"""
        return (v >= self.v_th).to(v.dtype)

    def simulate(self):
        """(STEP): forward connections carry s[t+1], feedback s[t]."""
        rank = {name: i for i, name in enumerate(["input", *self.order])}
        u = {l: torch.zeros(len(self.x), *self.shape[l], dtype=self.x.dtype, device=self.device) for l in self.order}
        s, train = dict(u), {l: [] for l in self.order}
        for t in range(self.n_steps):
            before = dict(s)
            s["input"] = self.x[:, t] if self.spiking else self.x
            for l in self.order:
                v = self.leak * u[l]
                for c in self.connections:
                    if c["target"] == l:
                        sent = s if rank[c["source"]] < rank[l] else before
                        v = v + self.send(c, sent[c["source"]])
                s[l] = self.fires(v)
                u[l] = v - self.v_th * s[l]
                train[l].append(s[l])
        return {l: torch.stack(steps, 1) for l, steps in train.items()}, u

    def pre_activation(self, l, a):
        return sum(self.send(c, a[c["source"]]) for c in self.connections if c["target"] == l)

    def mask(self, p):
        """(MASK), both ends inside"""
        return ((p >= 0) & (p <= self.v_th)).to(p.dtype)

    # --- backward --------------------------------------------------------------------------------

    def solve(self, g, m):
        """(BETA): β_l = g_l + Σ_{l→k} (1/V_th) W_klᵀ m_k β_k, swept until nothing moves."""
        beta = {l: torch.zeros_like(v) for l, v in g.items()}
        for _ in range(2000):
            moved = 0.0
            for l in reversed(self.order):
                after = g[l].clone()
                for c in self.connections:
                    if c["source"] == l:
                        k = c["target"]
                        after += self.send_back(c, m[k] * beta[k] / self.v_th)
                moved = max(moved, float((after - beta[l]).abs().max()))
                beta[l] = after
            if moved <= self.config["solver_tol"] * max(float(v.abs().max()) for v in beta.values()) / 10:
                break
        return beta

    def norm_back(self, c, delta, z):
        """From ∂L/∂y to ∂L/∂z through (BN): the batch's statistics move with z, running ones do not."""
        scale = self.spread(self.param(c, "bn_weight") / self.deviation[c["name"]], z)
        if c["source"] != "input":
            return scale * delta
        z_hat = self.normalised(c, z)
        columns, columns_hat = self.over_channels(delta), self.over_channels(z_hat)
        mean, along = columns.mean(1), (columns * columns_hat).mean(1)
        return scale * (delta - self.spread(mean, z) - z_hat * self.spread(along, z))

    def hebbian(self, c, delta, pre):
        """(HEBB), pulled back to the parameters of one connection"""
        grads, name = {}, c["name"]
        delta = delta * self.keep.get(name, 1)
        if c["batch_norm"]:
            z = self.raw(c, pre)
            grads["bn_weight"] = self.over_channels(delta * self.normalised(c, z)).sum(1)
            grads["bn_bias"] = self.over_channels(delta).sum(1)
            delta = self.norm_back(c, delta, z)
        if c["bias"]:
            grads["bias"] = self.over_channels(delta).sum(1)
        grads["weight"] = self.outer(c, delta, pre, self.param(c, "weight"))
        if c["restriction"] is not None:
            grads["weight"], grads["alpha"] = self.restrict_back(c, grads["weight"])
        return {f"{name}.{part}": value for part, value in grads.items()}

    def update(self, grads, a):
        """θ − η (∇ + κ θ), α back into [−c, c], running statistics one batch on."""
        sgd, new = self.config["sgd"], dict(self.params)
        for name, grad in grads.items():
            new[name] = self.params[name] - sgd["rate"] * (grad + sgd["weight_decay"] * self.params[name])
        for c in self.connections:
            if c["restriction"] is not None:
                bound = c["restriction"]["c"]
                new[f"{c['name']}.alpha"] = new[f"{c['name']}.alpha"].clamp(-bound, bound)
            if c["batch_norm"]:
                found = self.statistics(c, self.raw(c, a[c["source"]]))
                for part, value in zip(("running_mean", "running_var"), found, strict=True):
                    old = self.param(c, part)
                    new[f"{c['name']}.{part}"] = old + self.config["bn"]["momentum"] * (value - old)
        return new

    def run(self):
        """All stages, ``<stage>/<name>`` to tensor."""
        self.x_mean = self.average(self.x) if self.spiking else self.x
        self.prepare()
        out = {"x_mean": self.x_mean}
        out |= {f"weight/{c['name']}": self.weight[c["name"]] for c in self.connections if c["restriction"]}
        for c in self.connections:
            if c["source"] == "input":
                out[f"drive/{c['target']}"] = self.send(c, self.x_mean)
        spikes, u = self.simulate()
        a = {"input": self.x_mean, **{l: self.average(s) for l, s in spikes.items()}}
        top, W_o = self.config["readout"]["source"], self.params["readout.weight"]
        logits = a[top].flatten(1) @ W_o.T + self.params["readout.bias"]
        one_hot = functional.one_hot(self.y, logits.shape[1])
        d_logits = (torch.softmax(logits, 1) - one_hot).to(logits.dtype) / len(self.x)
        out |= {"logits": logits, "d_logits": d_logits}
        m = {l: self.mask(self.pre_activation(l, a)) for l in self.order}
        g = {l: torch.zeros_like(a[l]) for l in self.order}
        g[top] = (d_logits @ W_o).unflatten(1, self.shape[top])
        beta = self.solve(g, m)
        grads = {"readout.weight": d_logits.T @ a[top].flatten(1), "readout.bias": d_logits.sum(0)}
        for c in self.connections:
            k = c["target"]
            grads |= self.hebbian(c, m[k] * beta[k] / self.v_th, a[c["source"]])
        for stage, found in {"spikes": spikes, "u": u, "mask": m, "g": g, "beta": beta}.items():
            out |= {f"{stage}/{l}": found[l] for l in self.order}
        out |= {f"rates/{l}": a[l] for l in self.order}
        out |= {f"grad/{name}": value for name, value in grads.items()}
        return out | {f"new/{name}": value for name, value in self.update(grads, a).items()}
