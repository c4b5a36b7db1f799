"""A port of the method to PyTorch, from the equations (labels as in the equation index): ``Port(case).run()``."""

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight


class Port:
    """One case on a device. Each equation is one method, so that a wrong one can be put in its place."""

    def __init__(self, case, device="cpu"):
        self.config, self.device = case.config, device
        self.params = {name: torch.tensor(value, device=device) for name, value in case.params.items()}
        self.keep = {name: torch.tensor(value, device=device) for name, value in case.keep.items()}
        self.x, self.y = torch.tensor(case.x, device=device), torch.tensor(case.y, device=device)
        self.leak, self.v_th = self.config["neuron"]["leak"], self.config["neuron"]["v_th"]
        self.order = [p["name"] for p in self.config["populations"]]
        shapes = [("input", self.config["input_shape"]), *((p["name"], p["shape"]) for p in self.config["populations"])]
        self.shape = {name: torch.Size(shape) for name, shape in shapes}
        self.connections = self.config["connections"]

    def param(self, c, part):
        return self.params.get(f"{c['name']}.{part}")

    def apply(self, c, weight, s):
        """W s"""
        if c["kind"] == "conv":
            return functional.conv2d(s, weight, None, c["stride"], c["padding"])
        if c["kind"] == "conv_transpose":
            return functional.conv_transpose2d(s, weight, None, c["stride"], c["padding"], c["output_padding"])
        return functional.linear(s.flatten(1), weight).unflatten(1, self.shape[c["target"]])

    def transpose(self, c, weight, v):
        """Wᵀ v"""
        if c["kind"] == "conv":
            return conv2d_input((len(v), *self.shape[c["source"]]), weight, v, c["stride"], c["padding"])
        if c["kind"] == "conv_transpose":
            return functional.conv2d(v, weight, None, c["stride"], c["padding"])
        return (v.flatten(1) @ weight).unflatten(1, self.shape[c["source"]])

    def outer(self, c, post, pre, weight):
        """Σ post preᵀ, summed over positions: (HEBB) without its factor."""
        if c["kind"] != "dense":
            large, small = (pre, post) if c["kind"] == "conv" else (post, pre)
            return conv2d_weight(large, weight.shape, small, c["stride"], c["padding"])
        return post.flatten(1).T @ pre.flatten(1)

    def singular(self, c):
        """‖W̄‖₂ of the map and its gradient, from a dense matrix; a large port would iterate."""
        raw, size = self.param(c, "weight").double(), self.shape[c["source"]]
        unit = torch.eye(size.numel(), dtype=raw.dtype, device=self.device)
        left, values, right = torch.linalg.svd(self.apply(c, raw, unit.unflatten(1, size)).flatten(1).T)
        u = left[:, 0].unflatten(0, self.shape[c["target"]])[None]
        return values[0], self.outer(c, u, right[0].unflatten(0, size)[None], raw)

    def restrict_back(self, c, d_weight):
        """From ∂L/∂W to ∂L/∂W̄ and ∂L/∂α"""
        raw, (norm, d_norm) = self.param(c, "weight"), self.singular(c)
        along = (d_weight.double() * raw.double()).sum() / norm
        return (self.param(c, "alpha") / norm * (d_weight - along * d_norm)).to(raw.dtype), along.to(raw.dtype)

    def over_channels(self, v):
        return v.transpose(0, 1).flatten(1)  # (B, C, ...) to (C, everything else)

    def spread(self, v, like):
        return v.view(1, -1, *[1] * (like.dim() - 2))  # (C,) against (B, C, ...)

    def prepare(self):
        """Weights and normalisation of every connection, fixed for the batch: the same for both passes."""
        self.weight, self.mean, self.deviation = {}, {}, {}
        for c in self.connections:
            weight = self.weight[c["name"]] = self.param(c, "weight")
            if c["restriction"]:  # W = α W̄ / ‖W̄‖, (NORM)
                self.weight[c["name"]] = (self.param(c, "alpha") / self.singular(c)[0] * weight).to(weight.dtype)
            if c["batch_norm"]:
                mean, variance = self.param(c, "running_mean"), self.param(c, "running_var")
                if c["source"] == "input":
                    variance, mean = torch.var_mean(self.over_channels(self.raw(c, self.x_mean)), 1, unbiased=False)
                self.mean[c["name"]] = mean
                self.deviation[c["name"]] = torch.sqrt(variance + self.config["bn"]["epsilon"])

    def raw(self, c, s):
        """z = W s + b"""
        z = self.apply(c, self.weight[c["name"]], s)
        return z + self.spread(self.param(c, "bias"), z) if c["bias"] else z

    def normalised(self, c, z):
        return (z - self.spread(self.mean[c["name"]], z)) / self.spread(self.deviation[c["name"]], z)

    def send(self, c, s):
        """What a connection brings: keep ⊙ BN(W s + b)"""
        out = self.raw(c, s)
        if c["batch_norm"]:
            out = self.spread(self.param(c, "bn_weight"), out) * self.normalised(c, out)
            out = out + self.spread(self.param(c, "bn_bias"), out)
        return out * self.keep.get(c["name"], 1)

    def send_back(self, c, v):
        """Its transpose: Wᵀ (scale ⊙ keep ⊙ v)"""
        v = v * self.keep.get(c["name"], 1)
        if c["batch_norm"]:
            v = v * self.spread(self.param(c, "bn_weight") / self.deviation[c["name"]], v)
        return self.transpose(c, self.weight[c["name"]], v)

    def average(self, train):
        """Weighted mean over time, (RATE): (B, T, ...) to (B, ...)"""
        weights = self.leak ** torch.arange(train.shape[1] - 1, -1, -1, dtype=torch.float64, device=self.device)
        return torch.tensordot(train, (weights / weights.sum()).to(train.dtype), ([1], [0]))

    def simulate(self):
        """(STEP): forward connections carry s[t+1], feedback s[t]."""
        rank = {name: i for i, name in enumerate(["input", *self.order])}
        u = {k: torch.zeros(len(self.x), *self.shape[k], dtype=self.x.dtype, device=self.device) for k in self.order}
        s, train = dict(u), {k: [] for k in self.order}
        for t in range(self.config["n_steps"]):
            before, s["input"] = dict(s), self.x[:, t] if self.config["input"] == "spikes" else self.x
            for k in self.order:
                v = self.leak * u[k]
                for c in (c for c in self.connections if c["target"] == k):
                    v = v + self.send(c, (s if rank[c["source"]] < rank[k] else before)[c["source"]])
                s[k] = (v >= self.v_th).to(v.dtype)
                u[k] = v - self.v_th * s[k]
                train[k].append(s[k])
        return {k: torch.stack(steps, 1) for k, steps in train.items()}, u

    def mask(self, k, a):
        """(MASK), both ends inside"""
        p = sum(self.send(c, a[c["source"]]) for c in self.connections if c["target"] == k)
        return ((p >= 0) & (p <= self.v_th)).to(p.dtype)

    def solve(self, g, m):
        """(BETA): β_l = g_l + Σ_{l→k} (1/V_th) W_klᵀ m_k β_k, swept until nothing moves."""
        beta = {k: torch.zeros_like(v) for k, v in g.items()}
        for _ in range(2000):
            moved = 0.0
            for k in reversed(self.order):
                after = g[k].clone()
                for c in (c for c in self.connections if c["source"] == k):
                    after += self.send_back(c, m[c["target"]] * beta[c["target"]] / self.v_th)
                moved = max(moved, float((after - beta[k]).abs().max()))
                beta[k] = after
            if moved <= 0.1 * self.config["solver_tol"] * max(float(v.abs().max()) for v in beta.values()):
                return beta
        raise RuntimeError(f"(BETA) is not solved: the last sweep moved it by {moved:.1e}")

    def hebbian(self, c, delta, pre):
        """(HEBB), pulled back to the parameters of one connection"""
        grads, delta = {}, delta * self.keep.get(c["name"], 1)
        if c["batch_norm"]:
            z_hat = self.normalised(c, self.raw(c, pre))
            grads["bn_weight"] = self.over_channels(delta * z_hat).sum(1)
            grads["bn_bias"] = self.over_channels(delta).sum(1)
            if c["source"] == "input":  # the batch's own statistics move with z, running ones do not
                mean, along = (self.over_channels(v).mean(1) for v in (delta, delta * z_hat))
                delta = delta - self.spread(mean, delta) - z_hat * self.spread(along, delta)
            delta = delta * self.spread(self.param(c, "bn_weight") / self.deviation[c["name"]], delta)
        if c["bias"]:
            grads["bias"] = self.over_channels(delta).sum(1)
        grads["weight"] = self.outer(c, delta, pre, self.param(c, "weight"))
        if c["restriction"]:
            grads["weight"], grads["alpha"] = self.restrict_back(c, grads["weight"])
        return {f"{c['name']}.{part}": value for part, value in grads.items()}

    def update(self, grads, a):
        """θ − η (∇ + κ θ), α back into [−c, c], running statistics one batch on."""
        sgd, old = self.config["sgd"], self.params
        new = old | {n: old[n] - sgd["rate"] * (grad + sgd["weight_decay"] * old[n]) for n, grad in grads.items()}
        for c in self.connections:
            if c["restriction"]:
                new[f"{c['name']}.alpha"].clamp_(-c["restriction"]["c"], c["restriction"]["c"])
            if c["batch_norm"]:
                found = torch.var_mean(self.over_channels(self.raw(c, a[c["source"]])), 1, unbiased=False)
                for part, value in zip(("var", "mean"), found, strict=True):
                    name = f"{c['name']}.running_{part}"
                    new[name] = old[name] + self.config["bn"]["momentum"] * (value - old[name])
        return new

    def run(self):
        """All stages, ``<stage>/<name>`` to tensor."""
        self.x_mean = self.average(self.x) if self.config["input"] == "spikes" else self.x
        self.prepare()
        out = {f"weight/{c['name']}": self.weight[c["name"]] for c in self.connections if c["restriction"]}
        out |= {f"drive/{c['target']}": self.send(c, self.x_mean) for c in self.connections if c["source"] == "input"}
        spikes, u = self.simulate()
        a = {"input": self.x_mean, **{k: self.average(s) for k, s in spikes.items()}}
        top, W_o = self.config["readout"]["source"], self.params["readout.weight"]
        logits = a[top].flatten(1) @ W_o.T + self.params["readout.bias"]
        d_logits = (torch.softmax(logits, 1) - functional.one_hot(self.y, logits.shape[1])) / len(self.x)
        out |= {"x_mean": self.x_mean, "logits": logits, "d_logits": d_logits}
        m = {k: self.mask(k, a) for k in self.order}
        g = {k: torch.zeros_like(a[k]) for k in self.order} | {top: (d_logits @ W_o).unflatten(1, self.shape[top])}
        beta = self.solve(g, m)
        grads = {"readout.weight": d_logits.T @ a[top].flatten(1), "readout.bias": d_logits.sum(0)}
        for c in self.connections:
            grads |= self.hebbian(c, m[c["target"]] * beta[c["target"]] / self.v_th, a[c["source"]])
        states = {"spikes": spikes, "u": u, "rates": {k: a[k] for k in self.order}, "mask": m, "g": g, "beta": beta}
        for stage, found in {**states, "grad": grads, "new": self.update(grads, a)}.items():
            out |= {f"{stage}/{name}": value for name, value in found.items()}
        return out
