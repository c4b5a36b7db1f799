"""The port of ``port_torch.py``, made fast: one training step that ``torch.compile`` takes as a single graph.

What differs from `Port`, equation by equation the same: normalisation is folded into weight and drive, static input is
sent once, spike input in one product for all steps, every other product is made once and kept, ‖W̄‖₂ is found by power
iteration that goes on from the last step's vector, and rates are summed while the network runs.

    port = FastPort(case)
    step = torch.compile(port.step, fullgraph=True)
    out, right = step(port.params, port.x, port.y, port.keep, port.start())
"""

from typing import NamedTuple

import torch
from port_torch import Port
from torch.nn import functional

EXACT = 1024  # maps with so many inputs and outputs are decomposed whole for the first vector
MOST = 2000  # sweeps of (BETA), steps of power iteration


def loop(condition, body, state):
    """Body on a tuple of tensors while the condition holds; a loop of the graph where there is one."""
    if torch.compiler.is_compiling():
        return torch.while_loop(condition, body, state)
    while condition(*state):
        state = body(*state)
    return state


def neuron_step(u, total, drive, received, leak, v_th):
    """(STEP) and the sum of (RATE): new u and total, and s."""
    v = leak * u + drive + received
    s = (v >= v_th).to(v.dtype)
    return v - v_th * s, leak * total + s, s


class Map(NamedTuple):
    """A connection, fixed for the batch: s goes to keep ⊙ (folded s + shift)."""

    weight: torch.Tensor  # after (NORM)
    folded: torch.Tensor  # times the normalisation's scale
    shift: torch.Tensor | None  # per channel: bias and normalisation
    keep: torch.Tensor | None
    norm: tuple | None  # ‖W̄‖₂ and its left and right vector
    scale: torch.Tensor | None  # of the normalisation
    mean: torch.Tensor | None
    deviation: torch.Tensor | None


class FastPort(Port):
    """A network on a device. ``step`` has no state of its own: everything that changes is an argument and comes back.

    ``tol`` and ``norm_tol`` are relative residuals of (BETA), each sample's, and of ‖W̄‖₂; without them as exact as the
    pack asks for. ``fire`` makes a time step, see `neuron_step`.
    """

    def __init__(self, case, device="cpu", *, fire=neuron_step, tol=None, norm_tol=None):
        super().__init__(case, device)
        self.fire = fire
        self.tol = 0.1 * self.config["solver_tol"] if tol is None else tol
        self.norm_tol = {"float64": 1e-12, "float32": 1e-5}[self.config["dtype"]] if norm_tol is None else norm_tol
        self.total_weight = sum(self.leak**age for age in range(self.config["n_steps"]))  # S_T of (RATE)

    def product(self, c, weight, s):
        """W s of samples, or of samples and steps."""
        if s.dim() == 1 + len(self.shape[c["source"]]):
            return self.apply(c, weight, s)
        return self.apply(c, weight, s.flatten(0, 1)).unflatten(0, s.shape[:2])

    def by_channel(self, v, c, n_leading=1):
        """(C,) against samples, or samples and steps, of a connection's target."""
        return v.view(*[1] * n_leading, -1, *[1] * (len(self.shape[c["target"]]) - 1))

    def start(self):
        """A first right vector for every restricted connection."""
        found = {}
        for c in self.connections:
            if c["restriction"]:
                weight, size = self.param(c, "weight"), self.shape[c["source"]]
                if max(size.numel(), self.shape[c["target"]].numel()) <= EXACT:
                    unit = torch.eye(size.numel(), dtype=torch.float64, device=self.device).unflatten(1, size)
                    matrix = self.apply(c, weight.double(), unit).flatten(1).T
                    right = torch.linalg.svd(matrix)[2][0].to(weight.dtype)
                else:
                    right = torch.ones(size.numel(), dtype=weight.dtype, device=self.device)
                found[c["name"]] = right.unflatten(0, size)[None]
        return found

    def singular_pair(self, c, weight, right):
        """‖W̄‖₂, left and right vector: v to W̄ᵀ W̄ v until that is σ v up to the tolerance."""

        def power(v):
            u = self.apply(c, weight, v)
            u = u / torch.linalg.vector_norm(u)
            w = self.transpose(c, weight, u)
            return u, w, torch.linalg.vector_norm(w)

        def body(v, residual, count):
            _, w, sigma = power(v)
            return w / sigma, torch.linalg.vector_norm(w - sigma * v) / sigma, count + 1

        zero = torch.zeros((), dtype=torch.int64, device=weight.device)
        state = (right / torch.linalg.vector_norm(right), torch.ones_like(right.flatten()[0]), zero)
        v, _, _ = loop(lambda v, residual, count: (residual > self.norm_tol) & (count < MOST), body, state)
        u, _, sigma = power(v)
        return sigma, u, v

    def prepare_map(self, c, params, x_mean, keep, right):
        """The map of a connection, with the batch's own statistics where it brings the input."""

        def param(part):
            return params.get(f"{c['name']}.{part}")

        weight, norm = param("weight"), None
        if c["restriction"]:
            norm = self.singular_pair(c, weight, right[c["name"]])
            weight = param("alpha") / norm[0] * weight
        if not c["batch_norm"]:
            return Map(weight, weight, param("bias"), keep.get(c["name"]), norm, None, None, None)
        mean, variance = param("running_mean"), param("running_var")
        if c["source"] == "input":
            z = self.apply(c, weight, x_mean)
            variance, mean = torch.var_mean(self.over_channels(z), 1, unbiased=False)
            mean = mean + param("bias") if c["bias"] else mean
        deviation = torch.sqrt(variance + self.config["bn"]["epsilon"])
        scale = param("bn_weight") / deviation
        shift = param("bn_bias") + scale * (param("bias") - mean if c["bias"] else -mean)
        rows = scale.repeat_interleave(self.shape[c["target"]].numel() // len(scale)) if c["kind"] == "dense" else scale
        axes = (1, -1, 1, 1) if c["kind"] == "conv_transpose" else (-1, *[1] * (weight.dim() - 1))
        return Map(weight, weight * rows.view(axes), shift, keep.get(c["name"]), norm, scale, mean, deviation)

    def sent(self, c, m, s, *, shifted=True):
        """What a connection brings, of samples or of samples and steps; without what never changes if not shifted."""
        out = self.product(c, m.folded, s)
        n_leading = out.dim() - len(self.shape[c["target"]])
        if shifted and m.shift is not None:
            out = out + self.by_channel(m.shift, c, n_leading)
        if m.keep is None:
            return out
        return out * (m.keep if n_leading == 1 else m.keep[:, None])

    def unchanging(self, maps, x):
        """What arrives from hidden connections whatever is fired: their shifts, by population."""
        found = {k: x.new_zeros(len(x), *self.shape[k]) for k in self.order}
        for c in self.connections:
            m = maps[c["name"]]
            if c["source"] != "input" and m.shift is not None:
                shift = self.by_channel(m.shift, c)
                found[c["target"]] = found[c["target"]] + (shift if m.keep is None else shift * m.keep)
        return found

    def run_steps(self, maps, x, at_mean, *, record):
        """(STEP): rates, last potentials, and spike trains if they are to be recorded."""
        rank = {name: i for i, name in enumerate(self.order)}
        inputs = [c for c in self.connections if c["source"] == "input"]
        drive, steps = self.unchanging(maps, x), {}
        for c in inputs:
            k = c["target"]
            if self.config["input"] == "spikes":
                steps[k] = steps.get(k, drive[k][:, None]) + self.sent(c, maps[c["name"]], x)
            else:
                drive[k] = drive[k] + at_mean[c["name"]]
        u = {k: torch.zeros_like(v) for k, v in drive.items()}
        total, s, train = dict(u), dict(u), {k: [] for k in self.order}
        for t in range(self.config["n_steps"]):
            before = dict(s)
            for k in self.order:
                received = torch.zeros_like(u[k])
                for c in (c for c in self.connections if c["target"] == k and c["source"] != "input"):
                    source = (s if rank[c["source"]] < rank[k] else before)[c["source"]]
                    received = received + self.sent(c, maps[c["name"]], source, shifted=False)
                now = steps[k][:, t] if k in steps else drive[k]
                u[k], total[k], s[k] = self.fire(u[k], total[k], now, received, self.leak, self.v_th)
                if record:
                    train[k].append(s[k])
        rates = {k: v / self.total_weight for k, v in total.items()}
        return rates, u, {k: torch.stack(v, 1) for k, v in train.items()} if record else {}

    def solve_beta(self, maps, g, m):
        """(BETA), swept from the top until no sample moves by more than the tolerance; and how many sweeps it took."""
        order = list(reversed(self.order))
        size = sum(v.flatten(1).square().sum(1) for v in g.values()).sqrt()

        def body(count, excess, *state):
            beta = dict(zip(order, state, strict=True))
            moved = 0.0
            for k in order:
                after = g[k]
                for c in (c for c in self.connections if c["source"] == k):
                    back = m[c["target"]] * beta[c["target"]] / self.v_th
                    keep = maps[c["name"]].keep
                    back = back if keep is None else back * keep
                    after = after + self.transpose(c, maps[c["name"]].folded, back)
                moved = moved + (after - beta[k]).flatten(1).square().sum(1)
                beta[k] = after.clone()
            return count + 1, (moved.sqrt() - self.tol * size).max(), *(beta[k] for k in order)

        first = g[order[0]]
        zero = torch.zeros((), dtype=torch.int64, device=first.device)
        state = (zero, torch.ones_like(first.flatten()[0]), *(g[k].clone() for k in order))
        count, _, *beta = loop(lambda count, excess, *beta: (excess > 0) & (count < MOST), body, state)
        return dict(zip(order, beta, strict=True)), count

    def gradients(self, c, m, params, delta, pre, z):
        """(HEBB), pulled back to the parameters of one connection; z is W s + b at the rates."""
        grads, delta = {}, delta if m.keep is None else delta * m.keep
        if c["batch_norm"]:
            z_hat = (z - self.by_channel(m.mean, c)) / self.by_channel(m.deviation, c)
            grads["bn_weight"] = self.over_channels(delta * z_hat).sum(1)
            grads["bn_bias"] = self.over_channels(delta).sum(1)
            if c["source"] == "input":  # the batch's own statistics move with z, running ones do not
                mean, along = (self.over_channels(v).mean(1) for v in (delta, delta * z_hat))
                delta = delta - self.by_channel(mean, c) - z_hat * self.by_channel(along, c)
            delta = delta * self.by_channel(m.scale, c)
        if c["bias"]:
            grads["bias"] = self.over_channels(delta).sum(1)
        raw = params[f"{c['name']}.weight"]
        grads["weight"] = self.outer(c, delta, pre, raw)
        if c["restriction"]:
            sigma, left, right = m.norm
            along = ((grads["weight"].double() * raw.double()).sum() / sigma).to(raw.dtype)
            d_norm = self.outer(c, left, right, raw)
            grads["weight"] = params[f"{c['name']}.alpha"] / sigma * (grads["weight"] - along * d_norm)
            grads["alpha"] = along
        return {f"{c['name']}.{part}": value for part, value in grads.items()}

    def updated(self, params, grads, velocity, zs):
        """θ − η v, v the new velocity; α back into [−c, c]; running statistics one batch on."""
        sgd, new, moved = self.config["sgd"], dict(params), {}
        for name, grad in grads.items():
            moved[name] = grad + sgd["weight_decay"] * params[name]
            if velocity is not None:
                moved[name] = moved[name] + sgd["momentum"] * velocity[name]
            new[name] = params[name] - sgd["rate"] * moved[name]
        for c in self.connections:
            if c["restriction"]:
                limit = c["restriction"]["c"]
                new[f"{c['name']}.alpha"] = new[f"{c['name']}.alpha"].clamp(-limit, limit)
            if c["batch_norm"]:
                found = torch.var_mean(self.over_channels(zs[c["name"]]), 1, unbiased=False)
                for part, value in zip(("var", "mean"), found, strict=True):
                    name = f"{c['name']}.running_{part}"
                    new[name] = params[name] + self.config["bn"]["momentum"] * (value - params[name])
        return new, moved

    def step(self, params, x, y, keep, right, velocity=None, *, record=False):
        """One training step.

        All stages, ``<stage>/<name>`` to tensor, if they are to be recorded, ``new/<name>`` and ``velocity/<name>`` if
        not; and the right vectors for the next step. ``sweeps`` is the number of sweeps of (BETA).
        """
        x_mean = self.average(x) if self.config["input"] == "spikes" else x
        maps = {c["name"]: self.prepare_map(c, params, x_mean, keep, right) for c in self.connections}
        at_mean = {c["name"]: self.sent(c, maps[c["name"]], x_mean) for c in self.connections if c["source"] == "input"}
        rates, u, train = self.run_steps(maps, x, at_mean, record=record)
        a = {"input": x_mean, **rates}
        top, W_o = self.config["readout"]["source"], params["readout.weight"]
        logits = a[top].flatten(1) @ W_o.T + params["readout.bias"]
        d_logits = (torch.softmax(logits, 1) - functional.one_hot(y, logits.shape[1])) / len(x)
        arriving = {k: torch.zeros_like(v) for k, v in rates.items()}
        for c in self.connections:
            now = at_mean[c["name"]] if c["source"] == "input" else self.sent(c, maps[c["name"]], a[c["source"]])
            arriving[c["target"]] = arriving[c["target"]] + now
        m = {k: ((p >= 0) & (p <= self.v_th)).to(p.dtype) for k, p in arriving.items()}
        g = {k: torch.zeros_like(v) for k, v in rates.items()}
        g[top] = (d_logits @ W_o).unflatten(1, self.shape[top])
        beta, sweeps = self.solve_beta(maps, g, m)
        grads = {"readout.weight": d_logits.T @ a[top].flatten(1), "readout.bias": d_logits.sum(0)}
        zs = {}
        for c in self.connections:
            z = None
            if c["batch_norm"]:
                z = self.apply(c, maps[c["name"]].weight, a[c["source"]])
                z = z + self.by_channel(params[f"{c['name']}.bias"], c) if c["bias"] else z
                zs[c["name"]] = z
            delta = m[c["target"]] * beta[c["target"]] / self.v_th
            grads |= self.gradients(c, maps[c["name"]], params, delta, a[c["source"]], z)
        new, moved = self.updated(params, grads, velocity, zs)
        found = {"new": new}
        out = {"sweeps": sweeps}
        if record:
            found |= {"spikes": train, "u": u, "rates": rates, "mask": m, "g": g, "beta": beta, "grad": grads}
            found["weight"] = {c["name"]: maps[c["name"]].weight for c in self.connections if c["restriction"]}
            found["drive"] = {}
            for c in self.connections:
                if c["source"] == "input":
                    found["drive"][c["target"]] = found["drive"].get(c["target"], 0) + at_mean[c["name"]]
            out |= {"x_mean": x_mean, "logits": logits, "d_logits": d_logits}
        else:
            found["velocity"] = moved
        out |= {f"{stage}/{name}": value for stage, values in found.items() for name, value in values.items()}
        return out, {c["name"]: maps[c["name"]].norm[2] for c in self.connections if c["restriction"]}


def run(case, device="cpu", *, transform=lambda step: step, **options):
    """All stages of a conformance case, on the CPU; ``transform`` is what compiles the step."""
    port = FastPort(case, device, **options)
    out, _ = transform(port.step)(port.params, port.x, port.y, port.keep, port.start(), record=True)
    sweeps = int(out.pop("sweeps"))
    if sweeps >= MOST:
        raise RuntimeError(f"(BETA) is not solved after {sweeps} sweeps")
    return {name: value.cpu() for name, value in out.items()}
