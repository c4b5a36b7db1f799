"""Training steps of ide_ref and of its fast port to PyTorch, in turns on the same batches, on CPU or GPU.

    python docs/examples/time_port.py fashion-mnist-400 mnist-64c5 --batch-size 128 --repeats 10

needs PyTorch beside ide_ref, and Triton for its row on a GPU. One row for each way: seconds of a training step, the
median of the repeats; how far the first step's parameters are from ours, relative to the step; and the seconds that the
first call takes, compilation included. ide_ref trains first, because early steps fire differently. No dropout; (BETA)
and ‖W̄‖₂ to the same tolerances.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ide_ref import presets
from ide_ref.bench.machine import most_threads
from ide_ref.bench.steps import find_data
from ide_ref.constraints import singular_tolerance
from ide_ref.training.evaluation import load_batch
from ide_ref.training.loop import begin, cpu_model
from ide_ref.training.step import training_step
from ide_ref.verify import conformance

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))
from port_torch_fast import FastPort, neuron_step


class Ours:
    """Steps of ide_ref."""

    def __init__(self, preset, params, velocity, rate):
        self.preset, self.params, self.velocity, self.rate = preset, params, velocity, rate

    def step(self, x, y):
        rng = np.random.default_rng(0)  # draws no mask
        done = training_step(self.preset, self.params, self.velocity, x, y, rate=self.rate, rng=rng)
        self.params, self.velocity = done.params, done.velocity


class Theirs:
    """Steps of the port on a device."""

    def __init__(self, case, velocity, device, compiled, fire):
        norm_tol = singular_tolerance(np.float32, training=True)
        self.port = FastPort(case, device, fire=fire, tol=case.config["solver_tol"], norm_tol=norm_tol)
        self.device = device
        self.params, self.right = self.port.params, self.port.start()
        self.velocity = {name: torch.tensor(value, device=device) for name, value in velocity.items()}
        self.make = torch.compile(self.port.step, fullgraph=True, dynamic=False) if compiled else self.port.step

    def step(self, x, y):
        x, y = torch.tensor(x, device=self.device), torch.tensor(y, device=self.device)
        out, self.right = self.make(self.params, x, y, {}, self.right, self.velocity)
        self.params = {name: out[f"new/{name}"] for name in self.params}
        self.velocity = {name: out[f"velocity/{name}"] for name in self.velocity}
        if self.device == "cuda":
            torch.cuda.synchronize()


def apart(before, ours, theirs):
    """How far two steps from the same parameters come apart, relative to the length of ours."""
    off = sum(np.sum((value.cpu().numpy() - ours[name]) ** 2) for name, value in theirs.items())
    return float(np.sqrt(off / sum(np.sum((ours[name] - before[name]) ** 2) for name in theirs)))


def seconds(step, x, y):
    began = time.perf_counter()
    step(x, y)
    return time.perf_counter() - began


def main(args):
    torch.set_num_threads(most_threads())
    card = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_model()}, {most_threads()} threads"
    print(f"PyTorch {torch.__version__} on {card}; ide_ref on {cpu_model()}, {most_threads()} threads")
    print(f"load of the machine {os.getloadavg()[0]:.1f} for {os.cpu_count()} cores; batch {args.batch_size}")
    print(
        "| preset | T | program | step | samples per second | first step differs by | first call |\n" + 7 * "|---" + "|"
    )
    for name in args.presets:
        preset = presets.load(name)
        recipe = replace(preset.recipe, batch_size=args.batch_size, tol=args.tol)
        preset = replace(preset, dropout=0.0, recipe=recipe)
        data, state = find_data(preset, None), begin(preset, 0)
        order, size = np.random.default_rng(0).permutation(len(data.y_train)), args.batch_size
        ours = Ours(preset, state.params, state.velocity, recipe.lr)

        def batch(i, preset=preset, data=data, order=order, size=size):
            places = np.arange(i * size, (i + 1) * size) % len(order)
            return load_batch(preset, data, "train", order[places])

        for i in range(args.warm_up):
            ours.step(*batch(i))

        # The pack's case of this name has the graph in plain words; sizes and settings are the preset's.
        (small,) = conformance.cases([f"{name}-lif-static-float32-bn"])
        net, (x, y) = preset.network, batch(args.warm_up)
        config = small.config | {
            "input_shape": net.input_shape, "n_steps": recipe.n_steps,
            "populations": [{"name": p.name, "shape": p.shape} for p in net.populations],
            "neuron": {"leak": net.neuron.leak, "v_th": net.neuron.v_th}, "solver_tol": recipe.tol,
            "sgd": {"rate": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay},
        }  # fmt: skip
        arrays = {f"param/{n}": v for n, v in ours.params.items() if not n.endswith("singular_vector")}
        case = conformance.Case(config, {"input/x": x, "input/y": y, **arrays})
        made = ["eager", "compiled"] if args.device == "cpu" else ["eager", "compiled", "eager, Triton"]
        rows = {"ide_ref": ours}
        for how in made:
            fire = neuron_step
            if "Triton" in how:
                from port_triton import fire
            rows[f"PyTorch {how}"] = Theirs(case, ours.velocity, args.device, how == "compiled", fire)
        before = ours.params
        first, times = {}, {row: [] for row in rows}
        for row, program in rows.items():
            first[row] = seconds(program.step, x, y)
        differs = {row: apart(before, ours.params, program.params) for row, program in rows.items() if row != "ide_ref"}
        for i in range(args.repeats):
            x, y = batch(args.warm_up + 1 + i)
            for row, program in rows.items():
                times[row].append(seconds(program.step, x, y))
        for row, found in times.items():
            step = float(np.median(found))
            off = f"{differs[row]:.0e}" if row in differs else ""
            told = f"{1000 * step:.1f} ms | {size / step:.0f} | {off} | {first[row]:.1f} s"
            print(f"| {name} on {data.name} | {recipe.n_steps} | {row} | {told} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("presets", nargs="*", default=["fashion-mnist-400", "mnist-64c5"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--tol", type=float, default=1e-3, help="relative residual of (BETA)")
    main(parser.parse_args())
