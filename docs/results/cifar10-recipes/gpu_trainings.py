"""Trainings of cifar10-alexnet-f on one GPU, in PyTorch and Triton, to choose a recipe by: what trainings.txt holds.

Needs PyTorch and ide_ref. From the root of the repository,

    python docs/results/cifar10-recipes/gpu_trainings.py check
    python docs/results/cifar10-recipes/gpu_trainings.py train < recipes.jsonl

``check`` says how far each gradient is from ide_ref's, relatively, for random parameters and four random images; it
runs on the CPU. ``train`` takes a recipe a line, such as {"name": "a", "epochs": 5, "lr": 0.2}; the others of its
fields are in DEFAULTS. It trains on the first 45,000 images and tests on the other 5,000, or, if "full", on all and on
the test set. A whole training step is one CUDA graph. Products of spikes are in float16, those of (BETA) and (HEBB) in
TF32, sums and potentials in float32. The text was drawn by an earlier form of it with the same arithmetic and other
draws: numbers come back but for rounding and chance.
"""

import json
import sys
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ide_ref import backward, cross_entropy, freeze, presets, simulate
from ide_ref.constraints import EPSILON, MOMENTUM
from ide_ref.datasets import load
from ide_ref.maps import read_out
from ide_ref.training.schedule import learning_rate, time_steps

DEFAULTS = {
    "batch": 128, "first": 6, "n_steps": 30, "readout_rate": 0.02, "clip": 10.0, "wd": 5e-4, "nesterov": False,
    "dropout": 0.0, "label_smoothing": 0.0, "solver": "gmres", "iters": 3, "seed": 0, "full": False, "test_every": 1,
}  # fmt: skip
PRESET = replace(presets.load("cifar10-alexnet-f", norm="kernel"), dropout=0.0)
RECIPE, (LEAK, V_TH) = PRESET.recipe, (PRESET.neuron.leak, PRESET.neuron.v_th)
# Forward connections: name, channels in and out, stride, side of the picture that is put out; all kernels are 3 by 3.
LAYERS = tuple(
    (c.name, *c.synapse.channels, c.synapse.stride, c.synapse.out_shape[1]) for c in PRESET.network.connections[:-1]
)
SIDES = (1, -1, 1, 1)
device = "cuda" if sys.argv[1:] == ["train"] and torch.cuda.is_available() else "cpu"
spikes_type = torch.float16 if device == "cuda" else torch.float32
channels_last = {"memory_format": torch.channels_last}
MEAN, STD = (torch.tensor(values, device=device).view(SIDES) for values in (RECIPE.mean, RECIPE.std))
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True

if device == "cuda":
    import triton
    import triton.language as tl

    @triton.jit
    def fire(y, drive, bias, u, total, s, n, C: tl.constexpr, DRIVEN: tl.constexpr, leak, v_th, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        there = i < n
        v = tl.load(y + i, there).to(tl.float32) + tl.load(bias + i % C)
        if DRIVEN:
            v += tl.load(drive + i, there)
        v += leak * tl.load(u + i, there)
        fires = v >= v_th
        tl.store(u + i, tl.where(fires, v - v_th, v), there)
        spike = tl.where(fires, 1.0, 0.0)
        tl.store(total + i, leak * tl.load(total + i, there) + spike, there)
        tl.store(s + i, spike.to(tl.float16), there)


def neuron_step(y, drive, bias, u, total, s):
    """(STEP) of one population, and the sum of (RATE): u, total and s change in place."""
    if device == "cuda":
        n = y.numel()
        assert y.is_contiguous(**channels_last)
        driven = y if drive is None else drive
        fire[(triton.cdiv(n, 1024),)](y, driven, bias, u, total, s, n, y.shape[1], drive is not None, LEAK, V_TH, 1024)
        return
    v = y + bias.view(SIDES) + (0 if drive is None else drive) + LEAK * u
    fires = (v >= V_TH).float()
    u.copy_(v - V_TH * fires)
    total.mul_(LEAK).add_(fires)
    s.copy_(fires)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, device=device, dtype=dtype).contiguous(**channels_last)


def conv(x, w, stride):
    return F.conv2d(x, w, stride=stride, padding=1)


def conv_back(x, w, stride):
    """The transpose of `conv`, and the feedback connection's own way."""
    return F.conv_transpose2d(x, w, stride=stride, padding=1, output_padding=stride - 1)


def dot(a, b):
    return (a * b).flatten(1).sum(1)


def masked(x, keeps, i):
    """x through the dropout mask of connection i, the feedback's the last; as it is where there are none."""
    return x if keeps is None else x * keeps[i]


def moments(z):
    return z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)


class Net:
    """Parameters `p`, velocities `v`, running statistics, and the leading singular pair of the feedback's kernel."""

    def __init__(self, seed):
        drawn = PRESET.network.init(np.random.default_rng(seed), dtype=np.float32)
        arrays = {name: torch.tensor(array, device=device) for name, array in drawn.items()}
        self.p = {name: arrays[name] for name in PRESET.network.trainable}
        self.v = {name: torch.zeros_like(array) for name, array in self.p.items()}
        self.statistics = {name: [arrays[f"{name}.running_mean"], arrays[f"{name}.running_var"]] for name, *_ in LAYERS}
        self.right = torch.randn(self.p["feedback.weight"][0].numel(), device=device)
        self.power_iteration(50)

    def state(self):
        pairs = [array for pair in self.statistics.values() for array in pair]
        return [*self.p.values(), *self.v.values(), *pairs, self.right]

    def power_iteration(self, n):
        w = self.p["feedback.weight"].flatten(1)
        v = self.right / self.right.norm()
        for _ in range(n):
            u = w @ v
            v = w.t() @ (u / u.norm())
            v = v / v.norm()
        self.right.copy_(v)
        self.left = (w @ v) / (w @ v).norm()

    def feedback_weight(self, p):
        """(NORM): its derivative is that of uᵀ W̄ v."""
        w = p["feedback.weight"]
        return p["feedback.alpha"] * w / (self.left @ (w.flatten(1) @ self.right))

    def folded(self, p):
        """Weight and bias of the hidden connections, normalised with their running statistics."""
        found = []
        for name, *_ in LAYERS[1:]:
            mean, variance = self.statistics[name]
            scale = p[f"{name}.bn_weight"] / torch.sqrt(variance + EPSILON)
            weight = (p[f"{name}.weight"] * scale.view(-1, 1, 1, 1)).contiguous(**channels_last)
            found.append((weight, (p[f"{name}.bias"] - mean) * scale + p[f"{name}.bn_bias"]))
        return found

    def normalised(self, p, name, z, mean, variance):
        scale = p[f"{name}.bn_weight"] / torch.sqrt(variance + EPSILON)
        return (z - mean.view(SIDES)) * scale.view(SIDES) + p[f"{name}.bn_bias"].view(SIDES)

    def drive(self, p, x, training):
        """F x + b, normalised, and the batch's mean and variance."""
        z = conv(x, p["input.weight"], 2) + p["input.bias"].view(SIDES)
        found = moments(z)
        return self.normalised(p, "input", z, *(found if training else self.statistics["input"])), found


def rollout(drive, folded, feedback, n_steps, keeps):
    """a[T] of all populations."""
    weights = [weight.to(spikes_type).contiguous(**channels_last) for weight, _ in folded]
    feedback = feedback.to(spikes_type).contiguous(**channels_last)
    shapes = [(len(drive), out, side, side) for _, _, out, _, side in LAYERS]
    s = [zeros(*shape, dtype=spikes_type) for shape in shapes]
    u, total = [zeros(*shape) for shape in shapes], [zeros(*shape) for shape in shapes]
    none = [torch.zeros(shape[1], device=device) for shape in shapes]
    for _ in range(n_steps):
        y = conv_back(s[4], feedback, 2)
        neuron_step(masked(y, keeps, 5), drive, none[0], u[0], total[0], s[0])
        for i in range(1, 5):
            y, bias = conv(s[i - 1], weights[i - 1], LAYERS[i][3]), folded[i - 1][1]
            if keeps is not None:
                y, bias = (y + bias.to(spikes_type).view(SIDES)) * keeps[i], none[i]
            neuron_step(y, None, bias, u[i], total[i], s[i])
    return [array / sum(LEAK**i for i in range(n_steps)) for array in total]


def least_squares(back, b, n):
    """GMRES without a restart: n products, from 0."""
    basis, images = [b / dot(b, b).sqrt().clamp_min(1e-30).view(-1, 1, 1, 1)], []
    for j in range(n):
        w = basis[j] - back(basis[j])[0]
        images.append(w)
        for _ in range(2):
            for q in basis:
                w = w - dot(q, w).view(-1, 1, 1, 1) * q
        basis.append(w / dot(w, w).sqrt().clamp_min(1e-30).view(-1, 1, 1, 1))
    q, r, weights = [], {}, [None] * n
    for j, w in enumerate(images):
        for i in range(j):
            r[i, j] = dot(q[i], w)
            w = w - r[i, j].view(-1, 1, 1, 1) * q[i]
        r[j, j] = dot(w, w).sqrt().clamp_min(1e-30)
        q.append(w / r[j, j].view(-1, 1, 1, 1))
    for j in reversed(range(n)):
        rest = dot(q[j], b) - sum(r[j, i] * weights[i] for i in range(j + 1, n))
        weights[j] = rest / r[j, j]
    return sum(weight.view(-1, 1, 1, 1) * v for weight, v in zip(weights, basis, strict=False))


def beta(back, b, solver, n):
    """(BETA) on the last population, w = Jᵀ w + b."""
    if solver == "gmres":
        return least_squares(back, b, n)
    w = torch.zeros_like(b) if solver == "damped" else b
    for _ in range(n):
        after = back(w)[0] + b
        w = 0.5 * (w + after) if solver == "damped" else after
    return w


def gradients(net, x, y, n_steps, recipe, keeps=None):
    """Gradients; and loss, number right, largest residual of (BETA), firing rate. Moves the running statistics."""
    p = {name: array.detach().requires_grad_(True) for name, array in net.p.items()}
    net.power_iteration(3)
    with torch.no_grad():
        folded = net.folded(p)
    feeding_back = net.feedback_weight(p)
    feedback = feeding_back.detach().contiguous(**channels_last)
    drive, found = net.drive(p, x, training=True)
    drive = masked(drive, keeps, 0)
    with torch.no_grad():
        a = rollout(drive.contiguous(**channels_last), folded, feedback, n_steps, keeps)
    last = a[4].contiguous().flatten(1).requires_grad_(True)
    logits = last @ p["readout.weight"].t() + p["readout.bias"]
    loss = F.cross_entropy(logits, y, label_smoothing=recipe["label_smoothing"])
    g, *of_readout = torch.autograd.grad(loss, [last, p["readout.weight"], p["readout.bias"]])
    b = g.reshape(a[4].shape).contiguous(**channels_last)
    # What arrives at a[T]: masks know the running statistics, gradients pass through the batch's own.
    arriving, sent, statistics = [drive.detach()], [drive], {"input": found}
    for i, (name, _, _, stride, _) in enumerate(LAYERS[1:], 1):
        z = conv(a[i - 1], p[f"{name}.weight"], stride) + p[f"{name}.bias"].view(SIDES)
        statistics[name] = moments(z)
        arriving.append(masked(net.normalised(p, name, z, *net.statistics[name]).detach(), keeps, i))
        sent.append(masked(net.normalised(p, name, z, *statistics[name]), keeps, i))
    fed_back = masked(conv_back(a[4], feeding_back, 2), keeps, 5)
    with torch.no_grad():
        arriving[0] = arriving[0] + fed_back
        slopes = [((q >= 0) & (q <= V_TH)).float() / V_TH for q in arriving]

        def back(w):
            deltas = [slopes[4] * w]
            for i in range(4, 0, -1):
                sent_back = conv_back(masked(deltas[0], keeps, i), folded[i - 1][0], LAYERS[i][3])
                deltas.insert(0, slopes[i - 1] * sent_back)
            return conv(masked(deltas[0], keeps, 5), feedback, 2), deltas

        w = beta(back, b, recipe["solver"], recipe["iters"])
        image, deltas = back(w)
        rest = b + image - w
        residual = (dot(rest, rest) / dot(b, b).clamp_min(1e-38)).sqrt().max()
    names = [name for name in p if not name.startswith("readout")]
    parts = torch.autograd.grad([*sent, fed_back], [p[name] for name in names], [*deltas, deltas[0]])
    found = dict(zip([*names, "readout.weight", "readout.bias"], [*parts, *of_readout], strict=True))
    with torch.no_grad():
        for name, batch in statistics.items():
            for running, value in zip(net.statistics[name], batch, strict=True):
                running.add_(value - running, alpha=MOMENTUM)
        firing = sum(array.sum() for array in a) / sum(array.numel() for array in a)
    return found, (loss.detach(), (logits.argmax(1) == y).sum().float(), residual, firing)


@torch.no_grad()
def update(net, found, rate, recipe):
    """A step of SGD, in place; the length of the gradient."""
    length = sum((array * array).sum() for array in found.values()).sqrt()
    share = torch.clamp(recipe["clip"] / length.clamp_min(1e-30), max=1.0)
    for name, theta in net.p.items():
        g = found[name] * share + recipe["wd"] * theta
        net.v[name].mul_(RECIPE.momentum).add_(g)
        own = rate * recipe["readout_rate"] if name.startswith("readout") else rate
        theta.sub_(own * (g + RECIPE.momentum * net.v[name] if recipe["nesterov"] else net.v[name]))
    net.p["feedback.alpha"].clamp_(-1, 1)
    return length


def normalised_images(x):
    return ((x.float() / 255 - MEAN) / STD).contiguous(**channels_last)


@torch.no_grad()
def accuracy(net, images, labels, n_steps):
    net.power_iteration(3)
    folded, right = net.folded(net.p), 0
    feedback = net.feedback_weight(net.p)
    for i in range(0, len(images), 500):
        drive, _ = net.drive(net.p, normalised_images(images[i : i + 500]), training=False)
        a = rollout(drive.contiguous(**channels_last), folded, feedback, n_steps, None)
        logits = a[4].contiguous().flatten(1) @ net.p["readout.weight"].t() + net.p["readout.bias"]
        right += int((logits.argmax(1) == labels[i : i + 500]).sum())
    return right / len(images)


def augmented(padded, chosen):
    """Images shifted by up to four pixels each way, every second one mirrored."""
    n, pixels = len(chosen), torch.arange(32, device=device)
    down, across = (torch.randint(0, 9, (n, 1), device=device) for _ in range(2))
    flip = torch.rand(n, 1, device=device) < 0.5
    rows, columns = pixels + down, torch.where(flip, 31 - pixels, pixels) + across
    planes = torch.arange(3, device=device)[None, :, None, None]
    return padded[chosen[:, None, None, None], planes, rows[:, None, :, None], columns[:, None, None, :]]


def captured(net, body):
    """A CUDA graph of ``body`` and what it returns; what running it for that changed is put back."""
    kept, side = [array.clone() for array in net.state()], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = body()
    for array, value in zip(net.state(), kept, strict=True):
        array.copy_(value)
    return graph, out


def train(recipe, images, labels, test_images, test_labels):
    torch.manual_seed(recipe["seed"])
    rng, net = np.random.default_rng(recipe["seed"]), Net(recipe["seed"])
    n_batch, epochs, began = recipe["batch"], recipe["epochs"], time.perf_counter()
    in_epoch = len(images) // n_batch
    x, y = zeros(n_batch, 3, 32, 32), torch.zeros(n_batch, dtype=torch.long, device=device)
    rate, padded, graph, now = torch.zeros((), device=device), F.pad(images, (4, 4, 4, 4)), None, None
    for epoch in range(epochs):
        n_steps = time_steps(recipe["n_steps"], recipe["first"], epoch=epoch, epochs=epochs)
        if n_steps != now:

            def body(n_steps=n_steps):
                keeps = None
                if recipe["dropout"]:
                    shapes = [(n_batch, out, side, side) for _, _, out, _, side in LAYERS] + [(n_batch, 96, 16, 16)]
                    drawn = [torch.rand(shape, device=device) >= recipe["dropout"] for shape in shapes]
                    factor = 1 - recipe["dropout"]
                    keeps = [(keep.to(spikes_type) / factor).contiguous(**channels_last) for keep in drawn]
                found, told = gradients(net, x, y, n_steps, recipe, keeps)
                return torch.stack([*told, update(net, found, rate, recipe)])

            del graph
            graph, told = captured(net, body)
            now = n_steps
        order, sums = torch.tensor(rng.permutation(len(images)), device=device), torch.zeros(5, device=device)
        for k in range(in_epoch):
            chosen = order[k * n_batch : (k + 1) * n_batch]
            x.copy_(normalised_images(augmented(padded, chosen)))
            y.copy_(labels[chosen])
            plan = {"epoch": epoch, "step": epoch * in_epoch + k, "total_steps": epochs * in_epoch}
            rate.fill_(learning_rate(recipe["lr"], schedule="one-cycle", **plan))
            graph.replay()
            sums += told
        loss, right, residual, firing, length = (sums / in_epoch).tolist()
        tested = epoch == epochs - 1 or epoch % recipe["test_every"] == 0
        held = accuracy(net, test_images, test_labels, recipe["n_steps"]) if tested else -1
        print(
            f"{recipe['name']} epoch {epoch + 1}/{epochs} T {n_steps} loss {loss:.3f} train {right / n_batch:.4f} "
            f"held {held:.4f} res {residual:.2f} norm {length:.2f} fire {firing:.3f} "
            f"{time.perf_counter() - began:.1f} s",
            flush=True,
        )


def distances():
    """Relative distance of the loss, each gradient and the running statistics from ide_ref's, by name."""
    rng, network = np.random.default_rng(0), PRESET.network
    params = network.init(rng, dtype=np.float32)
    for name, array in params.items():
        part = name.rsplit(".", 1)[1]
        if part in ("bias", "bn_bias", "running_mean"):
            params[name] = rng.normal(0, 0.3, array.shape).astype(np.float32)
        if part in ("bn_weight", "running_var"):
            params[name] = rng.uniform(*((0.5, 2) if part == "bn_weight" else (0.05, 0.3)), array.shape).astype("f4")
    x, y = rng.standard_normal((4, 3, 32, 32)).astype(np.float32), np.arange(4)
    frozen = freeze(network, params, x, training=True)
    rates = simulate(frozen, x, 6)
    value, d_logits = cross_entropy(read_out(frozen, rates), y)
    ours = backward(frozen, rates, d_logits, solver="gmres", tol=1e-9, max_iter=4, allow_unconverged=True)
    net = Net(0)
    for name in net.p:
        net.p[name].copy_(torch.tensor(params[name]))
    for name, (mean, variance) in net.statistics.items():
        mean.copy_(torch.tensor(params[f"{name}.running_mean"]))
        variance.copy_(torch.tensor(params[f"{name}.running_var"]))
    net.power_iteration(300)
    found, (loss, *_) = gradients(net, torch.tensor(x), torch.tensor(y), 6, DEFAULTS)
    apart = {"loss": abs(float(loss) - value) / value}
    for name, pair in net.statistics.items():
        found |= dict(zip((f"{name}.running_mean", f"{name}.running_var"), pair, strict=True))
    for name, array in found.items():
        wanted = {**ours.gradients, **ours.statistics}[name]
        if name.endswith(".bias") and not name.startswith("readout"):
            continue  # 0 but for rounding: normalisation takes a constant off again
        apart[name] = np.linalg.norm(array.numpy() - wanted) / np.linalg.norm(wanted)
    return apart


def main():
    if sys.argv[1:] == ["check"]:
        for name, distance in distances().items():
            print(f"{name:20} {distance:.1e}")
    elif sys.argv[1:] == ["train"] and device == "cuda":
        data = load("cifar10")
        x, x_test = (torch.tensor(array, device=device) for array in (data.x_train, data.x_test))
        y, y_test = (torch.tensor(array.astype(np.int64), device=device) for array in (data.y_train, data.y_test))
        for line in sys.stdin:
            given = json.loads(line)
            if unknown := given.keys() - DEFAULTS.keys() - {"name", "epochs", "lr"}:
                sys.exit(
                    f"a recipe has {', '.join(sorted(unknown))}; its fields are name, epochs, lr, {', '.join(DEFAULTS)}"
                )
            print(line.strip(), flush=True)
            recipe = {**DEFAULTS, **given}
            held_out = (x[:45000], y[:45000], x[45000:], y[45000:])
            train(recipe, *((x, y, x_test, y_test) if recipe["full"] else held_out))
    else:
        sys.exit(f"usage: {sys.argv[0]} check, or train < RECIPES on a machine with a GPU")


if __name__ == "__main__":
    main()
