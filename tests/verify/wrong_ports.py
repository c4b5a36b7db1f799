"""A right port, and wrong ones: each the right one with one method in place of its own, in the order of the stages.

The right port takes the functions of :mod:`ide_ref.equations`, one method for each line that a port can get wrong. A
wrong port says in its docstring what it does, and before it where the pack must stop it: tag, case, first wrong stage,
first wrong array there. docs/wrong-ports.md is the same list for readers.
"""

import re
from dataclasses import dataclass

import numpy as np

from ide_ref import equations
from ide_ref.synapses import from_channels_last
from ide_ref.verify.conformance.make import specify_case
from ide_ref.verify.conformance.pack import DISCRETE, network_of, stage_of

TAGS = {
    "reset": "what a spike takes from a potential, and where potentials start",
    "leak-order": "λ: where it stands in a step, which one it is, the weights of (RATE)",
    "threshold": "V_th wherever it stands, and ≥",
    "population-order": "which population is computed before which, and which is read out",
    "delay": "a step too early, too late, or lost",
    "mask": "(MASK), and where it stands in (BETA) and (HEBB)",
    "transpose": "rows for columns, in (BETA), (HEBB) and layouts",
    "kernel-flip": "which number of a kernel stands at which place",
    "batch-statistics": "what is shared by a batch, its positions and its steps: statistics, dropout masks, means",
    "zero-gradient": "a gradient, or a part of it, that is lost without a word",
    "precision": "numbers with fewer digits than the case's",
}


class Port:
    """Every stage of a case from its inputs and parameters."""

    def __call__(self, case):
        spec = specify_case(case)
        network = network_of(case.config)
        self.case, self.connections, self.params, self.names = case, spec.connections, spec.params, spec.names
        self.network, self.sizes = network, spec.net.sizes
        self.leak, self.v_th = case.config["neuron"]["leak"], case.config["neuron"]["v_th"]
        self.readout, self.readout_tie = spec.readout, spec.readout_tie
        self.keeps = [self.keep(m.keep) for m in spec.net.maps]
        x, y = spec.x, case.y
        x_mean = self.x_average(x)
        self.maps = [self.freeze(k, x_mean) for k in range(len(self.connections))]
        spikes, u = self.run(x)
        a = [self.rates(s) for s in spikes]
        source, W_o, b_o = self.readout
        logits = equations.read_out(W_o, b_o, self.read(a, x_mean))
        d_logits = self.d_logits(logits, y)
        g = [self.g(d_logits, W_o) if i == source else np.zeros_like(rates) for i, rates in enumerate(a)]
        m = self.mask(a, x_mean)
        beta = self.beta(m, g)
        d_W = equations.hebb(d_logits, self.read(a, x_mean))
        gradients = {
            "readout.weight": equations.untied(d_W, self.readout_tie, d_W),
            "readout.bias": d_logits.sum(axis=0),
        }
        statistics = {}
        for k, (c, name) in enumerate(zip(self.connections, self.names, strict=True)):
            sent = x_mean if c.source < 0 else a[c.source]
            found = self.pull_back(k, self.delta(m[c.target], beta[c.target]), sent)
            for part, value in found.items():
                (statistics if part.startswith("running") else gradients)[f"{name}.{part}"] = value
        gradients = self.gradients(gradients)

        out = {"x_mean": self.shaped(x_mean, network.input_shape), "logits": logits, "d_logits": d_logits}
        for c, p, name in zip(self.connections, self.params, self.names, strict=True):
            if c.restriction is not None:
                out[f"weight/{name}"] = self.weight(c, p)
        for i, population in enumerate(network.populations):
            of = {"spikes": spikes[i], "u": u[i][:, -1], "rates": a[i], "mask": m[i], "g": g[i], "beta": beta[i]}
            driving = [folded for folded in self.maps if folded.source < 0 and folded.target == i]
            if driving:
                of["drive"] = sum(self.output(folded, x_mean) for folded in driving)
            out |= {f"{stage}/{population.name}": self.shaped(v, population.shape) for stage, v in of.items()}
        out |= {f"grad/{name}": value for name, value in gradients.items()}
        new = statistics | {name: self.update(name, case.params[name], d) for name, d in gradients.items()}
        out |= {f"new/{name}": value for name, value in new.items()}
        dtype = case.config["dtype"]
        return {n: np.asarray(v, np.uint8 if stage_of(n) in DISCRETE else dtype) for n, v in out.items()}

    def shaped(self, cells, shape):
        """(..., n) with channels last as (..., *shape)."""
        flat = from_channels_last(np.asarray(cells).reshape(-1, cells.shape[-1]), shape)
        return flat.reshape(*cells.shape[:-1], *shape)

    # Parameters to maps.
    def keep(self, keep):
        return keep

    def tie(self, c):
        return c.tie

    def norm(self, c, w):
        """‖W̄‖₂ and its gradient."""
        return equations.norm(c, w)

    def weight(self, c, p):
        w = self.parameter(p["weight"])
        return w if c.restriction is None else equations.restrict(w, float(p["alpha"]), self.norm(c, w)[0])

    def parameter(self, w):
        return w

    def kernel(self, c, w):
        """Weights as the forward pass reads them."""
        return w

    def moments(self, z, channel):
        return equations.moments(z, channel)

    def statistics(self, c, p, z):
        """Mean and variance that normalise: the input's of its batch, others running ones."""
        if c.source < 0:
            return self.moments(z, c.channel)
        return p["running_mean"][c.channel], p["running_var"][c.channel]

    def freeze(self, k, x_mean):
        c, p = self.connections[k], self.params[k]
        W = c.fixed if c.tie is None else equations.tied(self.kernel(c, self.weight(c, p)), self.tie(c))
        b = p["bias"][c.channel] if "bias" in p else np.zeros(len(c.channel))
        norm = None
        if "bn_weight" in p:
            z = x_mean @ W.T + b if c.source < 0 else np.zeros((1, len(b)))
            norm = (p["bn_weight"][c.channel], p["bn_bias"][c.channel], *self.statistics(c, p, z))
        return equations.Map(c.source, c.target, W, b, norm, self.keeps[k])

    # (STEP), (RATE)
    def output(self, m, s):
        return equations.output(m, s)

    def source(self, m, i, x, before, now):
        """What a connection to population i reads."""
        return x if m.source < 0 else now[m.source] if m.source < i else before[m.source]

    def arriving(self, i, x, before, now):
        return sum(self.output(m, self.source(m, i, x, before, now)) for m in self.maps if m.target == i)

    def charge(self, u, drive):
        return self.leak * u + drive

    def fires(self, v):
        return np.where(v >= self.v_th, 1.0, 0.0)

    def reset(self, v, s):
        return v - self.v_th * s

    def step(self, u, s, x):
        u_next, s_next = [], []
        for i in range(len(self.sizes)):
            v = self.charge(u[i], self.arriving(i, x, s, s_next))
            s_next.append(self.fires(v))
            u_next.append(self.reset(v, s_next[i]))
        return u_next, s_next

    def start(self, x):
        rest = [np.zeros((len(x), n)) for n in self.sizes]
        return rest, rest

    def frames(self, x):
        """The input of each step."""
        return [x[:, t] for t in range(x.shape[1])]

    def run(self, x):
        """s[1..T] and u[1..T] of each population, (B, T, n)."""
        u, s = self.start(x)
        steps = []
        for frame in self.frames(x):
            u, s = self.step(u, s, frame)
            steps.append((s, u))
        return [[np.stack([now[part][i] for now in steps], axis=1) for i in range(len(self.sizes))] for part in (0, 1)]

    def average(self, s):
        return equations.average(s, self.leak)

    def x_average(self, x):
        return self.average(x)

    def rates(self, s):
        return self.average(s)

    def read(self, a, x):
        """What the readout reads."""
        return a[self.readout[0]]

    def d_logits(self, logits, y):
        return equations.loss(logits, y)[1]

    def g(self, d_logits, W_o):
        """∂L/∂a of the population that is read."""
        return d_logits @ W_o

    # (MASK), (BETA)
    def inside(self, p):
        return np.where((p >= 0) & (p <= self.v_th), 1.0, 0.0)

    def mask(self, a, x):
        return [self.inside(self.arriving(i, x, a, a)) for i in range(len(a))]

    def back(self, m):
        """The map that (BETA) transposes."""
        return m

    def block(self):
        return equations.block_matrix(equations.Network(self.sizes, [self.back(m) for m in self.maps], 1.0, 1.0))

    def slope(self, m):
        """M/V_th."""
        return np.concatenate(m, axis=1) / self.v_th

    def jacobian_transposed(self, m):
        return self.block().transpose(0, 2, 1) * self.slope(m)[:, None, :]

    def solve(self, J, g):
        return np.linalg.solve(np.eye(J.shape[1]) - J, g[:, :, None])[:, :, 0]

    def beta(self, m, g):
        found = self.solve(self.jacobian_transposed(m), np.concatenate(g, axis=1))
        return np.split(found, np.cumsum(self.sizes)[:-1], axis=1)

    # (HEBB), and back to the parameters.
    def delta(self, m, beta):
        return m * beta / self.v_th

    def hebb(self, delta, a):
        return equations.hebb(delta, a)

    def from_batch(self, c):
        """Whether statistics move with the weights."""
        return c.source < 0

    def bias(self, delta, channel):
        return np.bincount(channel, weights=delta.sum(axis=0))

    def running(self, old, value):
        return (1 - equations.MOMENTUM) * old + equations.MOMENTUM * value

    def running_moments(self, z, channel):
        return equations.moments(z, channel)

    def untied(self, c, d_W, w):
        return equations.untied(d_W, self.tie(c), w)

    def restrict_back(self, c, p, d_w):
        return equations.restrict_back(d_w, p["weight"], float(p["alpha"]), *self.norm(c, p["weight"]))

    def pull_back(self, k, delta, a):
        c, m, p, found = self.connections[k], self.maps[k], self.params[k], {}
        delta = m.keep * delta
        if m.norm is not None:
            z = a @ m.W.T + m.b
            back = equations.normalise_back(delta, z, m.norm, c.channel, self.from_batch(c))
            delta, found["bn_weight"], found["bn_bias"] = back
            first = np.unique(c.channel, return_index=True)[1]
            for part, value in zip(("running_mean", "running_var"), self.running_moments(z, c.channel), strict=True):
                found[part] = self.running(p[part], value[first])
        if "bias" in p:
            found["bias"] = self.bias(delta, c.channel)
        if c.tie is not None:
            found["weight"] = self.untied(c, self.hebb(delta, a), p["weight"])
        if c.restriction is not None:
            found["weight"], found["alpha"] = self.restrict_back(c, p, found["weight"])
        return found

    def gradients(self, found):
        return found

    def update(self, name, theta, d_theta):
        sgd = self.case.config["sgd"]
        theta = theta.astype(np.float64)
        theta, _ = equations.sgd_step(theta, 0 * theta, d_theta, sgd["rate"], sgd["momentum"], sgd["weight_decay"])
        c = self.network.connections[self.names.index(name.rpartition(".")[0])] if name.endswith(".alpha") else None
        return theta if c is None else np.clip(theta, -c.restriction.c, c.restriction.c)


DENSE = "fashion-mnist-400-lif-static-float64-bn"
DENSE_PLAIN = "fashion-mnist-400-lif-static-float64-plain"
DENSE_SPIKES = "fashion-mnist-400-lif-spikes-float64-plain"
DENSE_SPIKES_BN = "fashion-mnist-400-lif-spikes-float64-bn"
DENSE_SINGLE = "fashion-mnist-400-lif-static-float32-plain"
DENSE_SINGLE_BN = "fashion-mnist-400-lif-static-float32-bn"
DROPOUT = "fashion-mnist-400-lif-static-float64-bn-dropout"
CONV = "mnist-64c5-lif-static-float64-plain"
DEEP = "alexnet-f-lif-static-float64-bn"
DEEP_PLAIN = "alexnet-f-lif-static-float64-plain"
THRESHOLD = "threshold-if-static"
ENDS = "mask-ends"


@dataclass(frozen=True)
class Wrong:
    """A wrong port and where the pack must stop it."""

    make: type[Port]
    tag: str
    stage: str
    array: str
    """The first wrong array of the stage."""
    cases: tuple[str, ...]
    """As few as catch it: one, or two of one shape for what is kept between calls."""
    reference: str
    """Where this has happened."""
    reading: str
    """By which the case, an acceptable one, lets it pass; without that it stops it."""

    @property
    def name(self):
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.make.__name__).lower()

    @property
    def says(self):
        return self.make.__doc__


CORPUS = []


def section(tag):
    """A tag's part of docs/wrong-ports.md."""
    lines = [f"## {tag}", "", f"{TAGS[tag][0].upper()}{TAGS[tag][1:]}.", ""]
    lines += ["| port | what it does | stopped at | by the case | seen in |", "|---|---|---|---|---|"]
    for w in CORPUS:
        if w.tag == tag:
            where = f"`{w.stage}`" + f", `{w.array}`" * bool(w.array)
            cases = ", then ".join(f"`{name}`" for name in w.cases) + f", else taken as `{w.reading}`" * bool(w.reading)
            lines.append(f"| {w.name} | {w.says} | {where} | {cases} | {w.reference} |")
    return "\n".join(lines) + "\n"


def wrong(tag, stage, array, *cases, reference="", reading=""):
    def add(make):
        CORPUS.append(Wrong(make, tag, stage, array, cases, reference, reading))
        return make

    return add


def rounded(v, bits):
    """v to so many bits of mantissa, the leading one not counted: 7 of bfloat16, 10 of float16 and TF32."""
    mantissa, exponent = np.frexp(v)
    return np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)


def unbiased(z, channel):
    """Mean and unbiased variance of each channel, spread over neurons."""
    mean, variance = equations.moments(z, channel)
    count = (len(z) * np.bincount(channel))[channel]
    return mean, variance * count / (count - 1)


# What a spike takes, and where potentials start.
@wrong("reset", "spikes", "a1", DENSE_SPIKES, reference="snntorch#426")
class HardResetForSoft(Port):
    """The two resets are exchanged: where a spike should subtract V_th it sets the potential to zero."""

    def reset(self, v, s):
        return v * (1 - s)


@wrong("reset", "spikes", "a1", DENSE_SPIKES, reference="NIR#137, NIR#138")
class ResetLostInExchange(Port):
    """The network goes through a file that has no word for the reset, and comes back with its default v_reset = 0."""

    def reset(self, v, s):
        file = {"v_leak": 0.0, "v_threshold": self.v_th}
        return np.where(s == 1, file.get("v_reset", 0.0), v)


@wrong("reset", "spikes", "a1", DENSE_SPIKES)
class NoReset(Port):
    """A spike leaves the potential as it is."""

    def reset(self, v, s):
        return v


@wrong("reset", "spikes", "a1", DENSE, reference="[fidelity](fidelity.md): snntorch 1.0.0")
class ResetTwice(Port):
    """A potential that is still at the threshold after its reset is reset once more, without a spike."""

    def reset(self, v, s):
        u = v - self.v_th * s
        return u - self.v_th * (u >= self.v_th)


@wrong("reset", "spikes", "a1", DENSE_SPIKES_BN, reference="[fidelity](fidelity.md): sinabs 3.1.3")
class PotentialClippedBelow(Port):
    """Potentials do not fall below −V_th."""

    def reset(self, v, s):
        return np.maximum(v - self.v_th * s, -self.v_th)


@wrong("reset", "spikes", "a1", DENSE)
class StartAtHalfThreshold(Port):
    """Potentials start at V_th/2, as they do in networks converted from rates, in place of 0."""

    def start(self, x):
        u, s = super().start(x)
        return [v + self.v_th / 2 for v in u], s


@wrong("reset", "spikes", "a1", DENSE, DENSE_PLAIN, reference="spikingjelly#267")
class StateKeptBetweenCalls(Port):
    """The potentials and spikes at the end of one call are the start of the next."""

    last = None

    def start(self, x):
        return self.last or super().start(x)

    def step(self, u, s, x):
        self.last = super().step(u, s, x)
        return self.last


@wrong("reset", "spikes", "a1", DENSE, DENSE_PLAIN, reference="snntorch#108")
class SpikesKeptBetweenCalls(Port):
    """Potentials start anew with each call, the spikes that feedback reads do not."""

    last = None

    def start(self, x):
        u, s = super().start(x)
        return u, self.last or s

    def step(self, u, s, x):
        u, self.last = super().step(u, s, x)
        return u, self.last


@wrong("reset", "spikes", "a1", DENSE)
class StateKeptBetweenSamples(Port):
    """Samples run one after the other, and each starts where the one before ended."""

    def run(self, x):
        keeps, maps, found = self.keeps, self.maps, []
        for b in range(len(x)):
            self.maps = [m._replace(keep=keep[b : b + 1]) for m, keep in zip(maps, keeps, strict=True)]
            found.append(super().run(x[b : b + 1]))
        self.maps = maps
        return [[np.concatenate(parts) for parts in zip(*of, strict=True)] for of in zip(*found, strict=True)]

    last = None

    def start(self, x):
        return self.last or super().start(x)

    def step(self, u, s, x):
        self.last = super().step(u, s, x)
        return self.last


# λ.
@wrong("leak-order", "spikes", "a1", DENSE, reference="snntorch#341, snntorch#364")
class ResetAfterLeak(Port):
    """The potential leaks before V_th is subtracted: λ u − V_th s in place of λ (u − V_th s)."""

    def reset(self, v, s):
        return v - self.v_th * s / self.leak


@wrong("leak-order", "spikes", "a1", DENSE_SPIKES)
class LeakOnDrive(Port):
    """The drive leaks in the step in which it arrives: λ (u + drive) in place of λ u + drive."""

    def charge(self, u, drive):
        return self.leak * (u + drive)


@wrong(
    "leak-order",
    "spikes",
    "a1",
    DENSE,
    reference="[fidelity](fidelity.md): spikingjelly 2.0.0, norse 1.1.0, sinabs 3.1.3",
)
class DriveDamped(Port):
    """The drive is damped by 1 − λ, as in Euler's step of τ u' = −u + drive."""

    def charge(self, u, drive):
        return self.leak * u + (1 - self.leak) * drive


@wrong("leak-order", "spikes", "a1", DENSE, reference="norse#411")
class StepInExportedTau(Port):
    """The exported τ is dt τ, with dt = 0.001, and the importer's λ = 1 − dt/τ is that of another neuron."""

    def charge(self, u, drive):
        dt = 1e-3
        exported = dt * (dt / (1 - self.leak))
        return (1 - dt / exported) * u + drive


@wrong("leak-order", "u", "a1", DENSE, reference="norse#302")
class ExponentialForEuler(Port):
    """λ = exp(−dt/τ) where 1 − dt/τ is meant: 0.9512 in place of 0.95."""

    def charge(self, u, drive):
        return np.exp(self.leak - 1) * u + drive


@wrong("leak-order", "spikes", "a1", DENSE)
class NoLeak(Port):
    """Potentials do not leak: IF in place of LIF."""

    def charge(self, u, drive):
        return u + drive


@wrong("leak-order", "x_mean", "", DENSE_SPIKES)
class PlainAverageOfInput(Port):
    """The input's average over time is plain, without the weights λ^{T−1−τ}."""

    def x_average(self, x):
        return x.mean(axis=1)


@wrong("leak-order", "rates", "a1", DENSE)
class PlainRates(Port):
    """Spikes are counted and divided by T, where LIF's are weighted with λ^{T−τ} and divided by S_T."""

    def rates(self, s):
        return s.mean(axis=1)


@wrong("leak-order", "rates", "a1", DENSE)
class WeightsReversed(Port):
    """The weights of the rates run the wrong way: the oldest spike counts most."""

    def rates(self, s):
        return self.average(s[:, ::-1])


@wrong("leak-order", "rates", "a1", DENSE, reference="[authors](networks.md)")
class WeightsOneTooMany(Port):
    """The sum of weights that divides the rates has one step too many, S_{T+1} for S_T."""

    def rates(self, s):
        weights = self.leak ** np.arange(s.shape[1] + 1)
        return self.average(s) * weights[:-1].sum() / weights.sum()


@wrong("leak-order", "g", "a1", DENSE)
class AveragedTwiceOverTime(Port):
    """∂L/∂a is divided by S_T, as if the loss were one of weighted counts: the average is in (RATE) already."""

    def g(self, d_logits, W_o):
        return super().g(d_logits, W_o) / np.sum(self.leak ** np.arange(self.case.config["n_steps"]))


@wrong("leak-order", "beta", "a1", DENSE, reference="ml_genn#70")
class BrokenEulerStepOfAdjoint(Port):
    """The adjoint relaxes by Euler's steps whose decay is scaled by the step and whose source is not."""

    def solve(self, J, g):
        step, found = 0.5, np.zeros_like(g)
        for _ in range(400):
            found = found + step * ((J @ found[:, :, None])[:, :, 0] - found) + g
        return found


# V_th.
@wrong(
    "threshold", "spikes", "a1", THRESHOLD, reference="[fidelity](fidelity.md): snntorch 1.0.0, norse 1.1.0, nir 1.0.8"
)
class StrictThreshold(Port):
    """A neuron fires only above V_th, not at it: > for ≥."""

    def fires(self, v):
        return np.where(v > self.v_th, 1.0, 0.0)


@wrong("threshold", "spikes", "a1", THRESHOLD)
class ThresholdOne(Port):
    """Neurons fire at 1, whatever V_th is."""

    def fires(self, v):
        return np.where(v >= 1, 1.0, 0.0)


@wrong("threshold", "spikes", "a1", THRESHOLD)
class ResetByOne(Port):
    """A spike subtracts 1, whatever V_th is."""

    def reset(self, v, s):
        return v - s


@wrong("threshold", "spikes", "a1", THRESHOLD, reference="[fidelity](fidelity.md): sinabs 3.1.3")
class SeveralSpikes(Port):
    """A neuron fires as many spikes in a step as V_th fits into its potential."""

    def fires(self, v):
        return np.maximum(np.floor(v / self.v_th), 0)


@wrong("threshold", "spikes", "a1", THRESHOLD)
class FiresOnBothSides(Port):
    """A neuron fires at −V_th too."""

    def fires(self, v):
        return np.where(np.abs(v) >= self.v_th, 1.0, 0.0)


@wrong("threshold", "mask", "a1", THRESHOLD)
class MaskUpToOne(Port):
    """The mask ends at p = 1 in place of p/V_th = 1."""

    def inside(self, p):
        return np.where((p >= 0) & (p <= 1), 1.0, 0.0)


@wrong("threshold", "beta", "a1", THRESHOLD)
class BetaWithoutThreshold(Port):
    """(BETA) lacks 1/V_th."""

    def slope(self, m):
        return super().slope(m) * self.v_th


@wrong("threshold", "grad", "feedback.alpha", THRESHOLD)
class HebbWithoutThreshold(Port):
    """(HEBB) lacks 1/V_th."""

    def delta(self, m, beta):
        return m * beta


# Who is computed before whom.
@wrong("population-order", "spikes", "a2", DEEP)
class AllFromTheStepBefore(Port):
    """All populations read spikes of step t, where forward connections bring those of t + 1."""

    def source(self, m, i, x, before, now):
        return super().source(m, i, x, before, before)


@wrong("population-order", "spikes", "a2", DEEP)
class LastPopulationFirst(Port):
    """Populations are stepped from the last to the first, each reading what is there by then."""

    def step(self, u, s, x):
        u, s = list(u), list(s)
        for i in reversed(range(len(u))):
            v = self.charge(u[i], self.arriving(i, x, s, s))
            s[i] = self.fires(v)
            u[i] = self.reset(v, s[i])
        return u, s


@wrong("population-order", "logits", "", DEEP_PLAIN)
class ReadoutOfRecomputedRates(Port):
    """The readout reads the last rates as (FP) makes them of the others, not as they were counted."""

    def read(self, a, x):
        last = self.readout[0]
        return np.clip(self.arriving(last, x, a, a) / self.v_th, 0, 1)


@wrong("population-order", "mask", "a2", DEEP, reference="[authors](networks.md)")
class MaskAtRecomputedRates(Port):
    """The mask is taken at rates that one sweep of (FP) makes of a[T], not at a[T] itself."""

    def mask(self, a, x):
        new, m = [], []
        for i in range(len(a)):
            p = self.arriving(i, x, a, new)
            new.append(np.clip(p / self.v_th, 0, 1))
            m.append(self.inside(p))
        return m


# Steps.
@wrong("delay", "spikes", "a1", DENSE_SPIKES)
class FeedbackTwoStepsLate(Port):
    """Feedback brings s[t − 1] in place of s[t]."""

    def run(self, x):
        self.older = None
        return super().run(x)

    def step(self, u, s, x):
        older, self.older = self.older or s, s
        return super().step(u, older, x)


@wrong("delay", "spikes", "a1", DENSE)
class FeedbackWithoutDelay(Port):
    """Feedback brings s[t + 1]: each step is computed twice, the second time with the spikes of the first."""

    def step(self, u, s, x):
        return super().step(u, super().step(u, s, x)[1], x)


@wrong("delay", "spikes", "a1", DENSE_SPIKES)
class InputOneStepLate(Port):
    """The input arrives a step late, and the last frame never."""

    def frames(self, x):
        return [np.zeros_like(x[:, 0]), *super().frames(x)[:-1]]


@wrong("delay", "spikes", "a1", DENSE)
class SpikesRecordedTooEarly(Port):
    """s[0..T−1] are recorded and averaged in place of s[1..T]."""

    def run(self, x):
        spikes, u = super().run(x)
        return [np.concatenate([np.zeros_like(s[:, :1]), s[:, :-1]], axis=1) for s in spikes], u


@wrong("delay", "spikes", "a1", DENSE)
class ResetOneStepLate(Port):
    """A spike's V_th is subtracted one step later."""

    def step(self, u, s, x):
        u_next, s_next = [], []
        for i in range(len(self.sizes)):
            v = self.charge(u[i], self.arriving(i, x, s, s_next))
            s_next.append(self.fires(v))
            u_next.append(self.reset(v, s[i]))
        return u_next, s_next


@wrong("delay", "rates", "a1", DENSE)
class LastStepDropped(Port):
    """Rates are taken over s[1..T−1]."""

    def rates(self, s):
        return self.average(s[:, :-1])


@wrong("delay", "x_mean", "", DENSE_SPIKES)
class FirstFrameDropped(Port):
    """The input's average is taken over x[1..T−1]."""

    def x_average(self, x):
        return self.average(x[:, 1:])


# (MASK)
@wrong("mask", "mask", "a1", ENDS, reading="lower-end-outside")
class MaskOpenBelow(Port):
    """The mask is 0 at p = 0."""

    def inside(self, p):
        return np.where((p > 0) & (p <= self.v_th), 1.0, 0.0)


@wrong("mask", "mask", "a1", ENDS, reading="upper-end-outside")
class MaskOpenAbove(Port):
    """The mask is 0 at p = V_th."""

    def inside(self, p):
        return np.where((p >= 0) & (p < self.v_th), 1.0, 0.0)


@wrong("mask", "mask", "a1", DENSE_PLAIN)
class MaskOfRelu(Port):
    """The mask has no upper end, as that of continuous time."""

    def inside(self, p):
        return np.where(p >= 0, 1.0, 0.0)


@wrong("mask", "mask", "a1", DENSE_PLAIN)
class MaskOfTheNextSample(Port):
    """Each sample has the mask of the next one in the batch."""

    def mask(self, a, x):
        return [np.roll(m, -1, axis=0) for m in super().mask(a, x)]


@wrong("mask", "mask", "a1", DENSE_PLAIN)
class MaskOfTheBatch(Port):
    """All samples have one mask, that of their average p."""

    def inside(self, p):
        return super().inside(np.broadcast_to(p.mean(axis=0), p.shape))


@wrong("mask", "mask", "a1", DENSE_PLAIN)
class MaskOfRates(Port):
    """The mask is 1 where 0 < a[T] < 1: of the rates themselves in place of what arrives."""

    def mask(self, a, x):
        return [np.where((rates > 0) & (rates < 1), 1.0, 0.0) for rates in a]


@wrong("mask", "beta", "a1", DENSE_PLAIN)
class BetaWithoutMask(Port):
    """(BETA) lacks M."""

    def slope(self, m):
        return np.ones_like(super().slope(m)) / self.v_th


@wrong("mask", "beta", "a1", DENSE_PLAIN)
class MaskOnTheWrongSide(Port):
    """(BETA) has M Wᵀ in place of Wᵀ M: the mask of the sending neuron for that of the receiving."""

    def jacobian_transposed(self, m):
        return self.block().transpose(0, 2, 1) * self.slope(m)[:, :, None]


@wrong("mask", "grad", "feedback.alpha", DENSE_PLAIN)
class HebbWithoutMask(Port):
    """(HEBB) lacks M."""

    def delta(self, m, beta):
        return beta / self.v_th


# Rows and columns.
@wrong("transpose", "beta", "a1", DENSE)
class BetaNotTransposed(Port):
    """(BETA) has W in place of Wᵀ."""

    def jacobian_transposed(self, m):
        return self.block() * self.slope(m)[:, None, :]


@wrong("transpose", "grad", "feedback.alpha", DENSE)
class HebbTransposed(Port):
    """(HEBB) has a δᵀ in place of δ aᵀ where the matrix is square."""

    def hebb(self, delta, a):
        found = super().hebb(delta, a)
        return found.T if found.shape[0] == found.shape[1] else found


@wrong("transpose", "drive", "a1", DEEP)
class KernelTransposed(Port):
    """Rows and columns of the kernels are exchanged."""

    def kernel(self, c, w):
        return w.swapaxes(2, 3)


@wrong("transpose", "spikes", "a1", CONV)
class ChannelsExchanged(Port):
    """Weights of the feedback are read as (in, out, rows, columns) in place of (out, in, rows, columns)."""

    def kernel(self, c, w):
        return w.swapaxes(0, 1) if c.source >= c.target else w


@wrong("transpose", "logits", "", DEEP)
class ReadoutChannelsLast(Port):
    """The readout's weights are held against rates flattened with channels last, not first."""

    def read(self, a, x):
        return super().read(a, x)[:, np.argsort(self.readout_tie[0])]


@wrong("transpose", "beta", "a1", DROPOUT)
class BetaWithoutDropout(Port):
    """The transposed connections of (BETA) lack the dropout masks."""

    def back(self, m):
        return m._replace(keep=np.ones_like(m.keep))


# Kernels.
@wrong("kernel-flip", "beta", "a1", CONV)
class KernelNotFlipped(Port):
    """The adjoint of a convolution slides the kernel as it is, where it has to be flipped."""

    def back(self, m):
        c = next(c for c in self.connections if (c.source, c.target) == (m.source, m.target))
        p = self.params[self.connections.index(c)]
        return m._replace(W=equations.tied(self.weight(c, p)[..., ::-1, ::-1], c.tie))


@wrong("kernel-flip", "drive", "a1", DEEP)
class KernelFlippedForward(Port):
    """Kernels are flipped in the forward pass: true convolution, where correlation is meant."""

    def kernel(self, c, w):
        return w[..., ::-1, ::-1]


@wrong("kernel-flip", "grad", "feedback.alpha", DEEP)
class KernelGradientFlipped(Port):
    """The gradient of a kernel comes out flipped."""

    def untied(self, c, d_W, w):
        return super().untied(c, d_W, w)[..., ::-1, ::-1]


class OtherGeometry(Port):
    """Convolutions whose output at (i, j) reads from the input at (i, j) stride + offset − padding."""

    stride, offset = None, 0

    def tie(self, c):
        """(n_out, n_in) in channels-last order, −1 for none."""
        at = self.connections.index(c)
        described, synapse = self.case.config["connections"][at], self.network.connections[at].synapse
        if described["kind"] != "conv":
            return c.tie
        stride, before = self.stride or described["stride"], described["padding"] - self.offset
        (n_out, n_in, size, _), (_, rows, columns) = synapse.weight_shape, synapse.in_shape
        numbers = np.arange(np.prod(synapse.weight_shape)).reshape(synapse.weight_shape)
        _, high, wide = synapse.out_shape
        found = np.full((high, wide, n_out, rows, columns, n_in), -1)
        for i, j, k, n in np.ndindex(high, wide, size, size):
            row, column = i * stride + k - before, j * stride + n - before
            if 0 <= row < rows and 0 <= column < columns:
                found[i, j, :, row, column, :] = numbers[:, :, k, n]
        return found.reshape(c.tie.shape)


@wrong("kernel-flip", "drive", "a1", DEEP)
class PaddingAtOneSide(OtherGeometry):
    """A convolution with stride 2 pads only below and to the right, as where an even size is to be halved."""

    offset = 1


@wrong("kernel-flip", "drive", "a1", DEEP)
class PaddingOneTooMany(OtherGeometry):
    """Convolutions pad one row and one column too many."""

    offset = -1


@wrong("kernel-flip", "drive", "a1", DEEP)
class StrideOne(OtherGeometry):
    """Convolutions move by 1 in place of 2, and what is too much is cut off."""

    stride = 1


@wrong("kernel-flip", "weight", "feedback", CONV, reference="[authors](networks.md)")
class NormOfTheKernel(Port):
    """(NORM) divides by the norm of the kernel as an (out, in·k·k) matrix, not by that of the convolution."""

    def norm(self, c, w):
        return equations.norm(c._replace(restriction="kernel"), w)


# What a batch shares.
@wrong("batch-statistics", "drive", "a1", DEEP)
class RunningForBatch(Port):
    """The input is normalised with running statistics in place of its batch's own."""

    def statistics(self, c, p, z):
        return p["running_mean"][c.channel], p["running_var"][c.channel]


@wrong("batch-statistics", "spikes", "a2", DEEP)
class BatchForRunning(Port):
    """Hidden connections are normalised with the statistics of each step's batch in place of running ones."""

    def output(self, m, s):
        if m.norm is not None and m.source >= 0:
            c = next(c for c in self.connections if (c.source, c.target) == (m.source, m.target))
            m = m._replace(norm=(*m.norm[:2], *equations.moments(s @ m.W.T + m.b, c.channel)))
        return super().output(m, s)


@wrong("batch-statistics", "drive", "a1", DEEP, reference="[authors](networks.md)")
class UnbiasedVariance(Port):
    """The batch is normalised with the unbiased variance, divided by one less than the count."""

    def moments(self, z, channel):
        return unbiased(z, channel)


@wrong("batch-statistics", "drive", "a1", DEEP)
class EpsilonOutsideTheRoot(Port):
    """Normalisation divides by √variance + ε in place of √(variance + ε)."""

    def moments(self, z, channel):
        mean, variance = super().moments(z, channel)
        return mean, (np.sqrt(variance) + equations.EPSILON) ** 2 - equations.EPSILON


@wrong("batch-statistics", "drive", "a1", DEEP)
class StatisticsOfEachNeuron(Port):
    """Statistics are taken over the batch alone, for each neuron, in place of over batch and positions."""

    def moments(self, z, channel):
        return z.mean(axis=0), z.var(axis=0)


@wrong("batch-statistics", "grad", "input.bias", DEEP)
class StatisticsHeldFixed(Port):
    """The gradient does not pass through the batch's statistics."""

    def from_batch(self, c):
        return False


@wrong("batch-statistics", "grad", "hidden1.bias", DEEP)
class RunningTakenForBatch(Port):
    """The gradient passes through the statistics of hidden connections too, where running ones do not move."""

    def from_batch(self, c):
        return True


@wrong("batch-statistics", "new", "hidden1.running_var", DEEP)
class UnbiasedRunningVariance(Port):
    """Running variances are updated with the unbiased variance of the batch."""

    def running_moments(self, z, channel):
        return unbiased(z, channel)


@wrong("batch-statistics", "new", "hidden1.running_mean", DEEP)
class MomentumReversed(Port):
    """A batch weighs 0.9 in the running statistics and the past 0.1."""

    def running(self, old, value):
        return super().running(value, old)


@wrong("batch-statistics", "new", "hidden1.running_mean", DEEP, reference="[authors](networks.md)")
class BatchCountedTwice(Port):
    """A batch is counted twice in the running statistics, once in each pass."""

    def running(self, old, value):
        return super().running(super().running(old, value), value)


@wrong("batch-statistics", "d_logits", "", DENSE)
class AveragedTwiceOverTheBatch(Port):
    """The gradient of the mean loss is divided by the size of the batch once more."""

    def d_logits(self, logits, y):
        return super().d_logits(logits, y) / len(y)


@wrong("batch-statistics", "d_logits", "", DENSE)
class SummedOverTheBatch(Port):
    """The loss is summed over the batch in place of averaged."""

    def d_logits(self, logits, y):
        return super().d_logits(logits, y) * len(y)


@wrong("batch-statistics", "grad", "hidden1.bias", DEEP)
class BiasAveragedOverPositions(Port):
    """The gradient of a convolution's bias is averaged over positions in place of summed."""

    def bias(self, delta, channel):
        return super().bias(delta, channel) / np.bincount(channel)


@wrong("batch-statistics", "drive", "a1", DROPOUT)
class DropoutScaledTwice(Port):
    """What dropout keeps is scaled by 1/(1 − rate) twice."""

    def keep(self, keep):
        return keep * keep.max()


@wrong("batch-statistics", "drive", "a1", DROPOUT)
class DropoutOfTheFirstSample(Port):
    """All samples have the dropout mask of the first one."""

    def keep(self, keep):
        return np.broadcast_to(keep[:1], keep.shape)


@wrong("batch-statistics", "spikes", "a1", DROPOUT)
class DropoutDrawnEachStep(Port):
    """Dropout masks are drawn anew in each step, where one holds for all steps of a batch."""

    def step(self, u, s, x):
        keep = self.maps
        self.maps = [m._replace(keep=np.roll(m.keep, self.rolled, axis=1)) for m in keep]
        self.rolled += 1
        found = super().step(u, s, x)
        self.maps = keep
        return found

    def run(self, x):
        self.rolled = 0
        return super().run(x)


# Gradients that are lost.
@wrong("zero-gradient", "grad", "feedback.alpha", DENSE_PLAIN, reference="spikingjelly#660")
class SpikesWithoutGradient(Port):
    """The derivative of the spike is silently zero: no connection learns, the readout alone does."""

    def delta(self, m, beta):
        return np.zeros_like(beta)


@wrong("zero-gradient", "beta", "a1", DENSE, reference="optimistix#54, jaxopt#466")
class ZerosAfterFailedSolve(Port):
    """The solver of (BETA) fails, and its start, zero, is returned without a word."""

    def solve(self, J, g):
        found = np.zeros_like(g)
        for _ in range(4):
            found = (J @ found[:, :, None])[:, :, 0] + g
        residual = np.abs((J @ found[:, :, None])[:, :, 0] + g - found).max()
        return found if residual <= 1e-12 * np.abs(g).max() else np.zeros_like(g)


@wrong("zero-gradient", "beta", "a1", DENSE)
class FeedbackDetached(Port):
    """β = ∂L/∂a: the gradient does not go through the network's equilibrium at all."""

    def solve(self, J, g):
        return g


@wrong("zero-gradient", "beta", "a1", DENSE, reference="[authors](networks.md)")
class HalfOfBeta(Port):
    """(BETA) is iterated as β ← (β + (Jᵀβ − β + g))/2, whose limit (2 − Jᵀ)⁻¹ g is about half of β."""

    def solve(self, J, g):
        return np.linalg.solve(2 * np.eye(J.shape[1]) - J, g[:, :, None])[:, :, 0]


@wrong("zero-gradient", "grad", "feedback.weight", DENSE)
class RestrictionWithoutGradient(Port):
    """(NORM) counts as a constant scale: ∂‖W̄‖/∂W̄ is dropped."""

    def restrict_back(self, c, p, d_w):
        norm, _ = self.norm(c, p["weight"])
        return equations.restrict_back(d_w, p["weight"], float(p["alpha"]), norm, np.zeros_like(d_w))


@wrong("zero-gradient", "grad", "feedback.alpha", DENSE)
class AlphaWithoutGradient(Port):
    """The gradient of α is zero."""

    def restrict_back(self, c, p, d_w):
        found, d_alpha = super().restrict_back(c, p, d_w)
        return found, 0 * d_alpha


@wrong("zero-gradient", "grad", "readout.bias", DENSE)
class ReadoutBiasWithoutGradient(Port):
    """The gradient of one parameter, the readout's bias, is zero."""

    def gradients(self, found):
        return found | {"readout.bias": 0 * found["readout.bias"]}


@wrong("zero-gradient", "grad", "hidden1.bn_weight", DEEP)
class GradientOfTheFirstSample(Port):
    """Scales of normalisation learn from the first sample alone."""

    def pull_back(self, k, delta, a):
        found = super().pull_back(k, delta, a)
        if "bn_weight" in found:
            first = np.concatenate([delta[:1], np.zeros_like(delta[1:])])
            found["bn_weight"] = super().pull_back(k, first, a)["bn_weight"]
        return found


@wrong("zero-gradient", "new", "feedback.alpha", DENSE)
class WeightDecayDropped(Port):
    """The step lacks weight decay, κ θ."""

    def update(self, name, theta, d_theta):
        return super().update(name, theta, d_theta - self.case.config["sgd"]["weight_decay"] * theta)


@wrong("zero-gradient", "new", "readout.bias", DENSE)
class ReadoutBiasNotUpdated(Port):
    """One parameter, the readout's bias, has its gradient and is not updated."""

    def update(self, name, theta, d_theta):
        return theta if name == "readout.bias" else super().update(name, theta, d_theta)


# Digits.
@wrong("precision", "weight", "feedback", DENSE_SINGLE)
class WeightsInHalfPrecision(Port):
    """Weights are read as bfloat16."""

    def parameter(self, w):
        return rounded(w, 7)


@wrong("precision", "weight", "feedback", DENSE)
class WeightsInSinglePrecision(Port):
    """Weights of a float64 case are read as float32."""

    def parameter(self, w):
        return w.astype(np.float32).astype(np.float64)


@wrong("precision", "drive", "a1", DEEP)
class VarianceByDifference(Port):
    """The batch's variance is E[z²] − E[z]² in single precision."""

    def moments(self, z, channel):
        z = z.astype(np.float32)
        mean, _ = equations.moments(z, channel)
        square, _ = equations.moments(z * z, channel)
        return mean, (square.astype(np.float32) - mean.astype(np.float32) ** 2).astype(np.float64)


@wrong("precision", "u", "a1", DENSE_SINGLE_BN)
class PotentialsInHalfPrecision(Port):
    """Potentials are held as float16 between steps."""

    def reset(self, v, s):
        return rounded(super().reset(v, s), 10)


@wrong("precision", "rates", "a1", DENSE_SINGLE)
class RatesInHalfPrecision(Port):
    """Rates are accumulated in bfloat16."""

    def rates(self, s):
        weights, total = self.leak ** np.arange(s.shape[1])[::-1], np.zeros_like(s[:, 0])
        for t, weight in enumerate(weights / weights.sum()):
            total = rounded(total + weight * s[:, t], 7)
        return total


@wrong("precision", "beta", "a1", DENSE_SINGLE)
class BetaInHalfPrecision(Port):
    """(BETA) is iterated in bfloat16."""

    def solve(self, J, g):
        found = g
        for _ in range(200):
            found = rounded((J @ found[:, :, None])[:, :, 0] + g, 7)
        return found


@wrong("precision", "beta", "a1", DENSE)
class BetaSolvedToAThousandth(Port):
    """(BETA) is iterated until it moves by less than a thousandth."""

    def solve(self, J, g):
        found, before = g, np.inf
        while np.abs(found - before).max() > 1e-3 * np.abs(found).max():
            before, found = found, (J @ found[:, :, None])[:, :, 0] + g
        return found


@wrong("precision", "grad", "feedback.alpha", DENSE_SINGLE)
class GradientInHalfPrecision(Port):
    """Gradients come out as bfloat16."""

    def gradients(self, found):
        return {name: rounded(value, 7) for name, value in found.items()}


@wrong("precision", "grad", "feedback.alpha", DENSE)
class HebbInSinglePrecision(Port):
    """(HEBB) of a float64 case is accumulated in single precision."""

    def hebb(self, delta, a):
        return (delta.astype(np.float32).T @ a.astype(np.float32)).astype(np.float64)
