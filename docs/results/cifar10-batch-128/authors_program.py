"""Training losses of the paper authors' program, with schedules of our own: what the texts on CIFAR-10 and MNIST hold.

Needs PyTorch, ide_ref, and the authors' modules (https://github.com/pkuxmq/IDE-FSNN) on the module path, for example

    PYTHONPATH=IDE-FSNN python authors_program.py recipe --steps 370
    PYTHONPATH=IDE-FSNN python authors_program.py one-cycle --lr 0.2 --dropout 0
    PYTHONPATH=IDE-FSNN python authors_program.py one-cycle --preset mnist-64c5 --lr 0.1 --epochs 15

One line for every ten steps: step, learning rate, T, mean loss of the ten batches; last the accuracy on the 5,000
training images that ``one-cycle`` holds out. The texts were drawn by an earlier form of it, which shifted and mirrored
on the device: what is drawn at random differs, so numbers come back but for that. That of MNIST also wrote the accuracy
of each epoch.
"""

import argparse
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from models.snn_ide_conv import SNNIDEConvNet
from models.snn_ide_conv_multilayer import SNNIDEConvMultiLayerNet

from ide_ref import presets
from ide_ref.datasets import load, normalise, random_crop, random_flip
from ide_ref.training.schedule import learning_rate, time_steps

BATCH, HELD_OUT = 128, 5000
# Model, its parts, (BETA)'s damped iterations and the largest T of one-cycle.
NETWORKS = {
    "cifar10-alexnet-f": (SNNIDEConvMultiLayerNet, {
        "c_in": 3, "c_hidden": 96, "num_classes": 10, "kernel_size_x": 3, "stride_x": 2, "padding_x": 1, "c_s1": 256,
        "c_s2": 384, "c_s3": 384, "c_s4": 256, "kernel_size_s": 3, "h_hidden": 8, "w_hidden": 8, "vth": 2.0,
        "leaky": 0.99,
    }, 4, 20),
    "mnist-64c5": (SNNIDEConvNet, {
        "c_in": 1, "c_hidden": 64, "num_classes": 10, "kernel_size_x": 5, "stride_x": 2, "padding_x": 2,
        "kernel_size_s": 5, "h_hidden": 14, "w_hidden": 14, "vth": 2.0, "leaky": 0.95,
    }, 5, 30),
}  # fmt: skip
device = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(x, recipe):
    return torch.tensor(normalise(x, recipe.mean, recipe.std), device=device)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=("recipe", "fixed-batches", "one-cycle"))
    p.add_argument("--preset", choices=NETWORKS, default="cifar10-alexnet-f", help="whose network and data")
    p.add_argument("--steps", type=int, default=370, help="of recipe and fixed-batches")
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--dropout", type=float, default=0.2)
    p.add_argument("--epochs", type=int, default=5, help="of one-cycle")
    given = p.parse_args()
    torch.manual_seed(0)
    recipe = presets.load(given.preset, recipe="fast" if given.preset == "mnist-64c5" else "paper").recipe
    data = load(recipe.dataset)
    x, y = data.x_train, torch.tensor(data.y_train.astype(np.int64), device=device)
    cycle = given.what == "one-cycle"
    model_of, parts, damped, n_steps = NETWORKS[given.preset]
    solver, n_products, n_steps = ("damped", damped, n_steps) if cycle else ("broy", 30, 30)
    parts = {**parts, "dropout": given.dropout, "threshold": n_products, "time_step": n_steps}
    model = model_of({"MODEL": parts, "OPTIM": {"solver": solver}}).to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=given.lr, momentum=0.9, weight_decay=5e-4)
    n_train = len(x) - HELD_OUT * cycle
    in_epoch = n_train // BATCH
    total = given.epochs * in_epoch if cycle else given.steps
    draws = np.random.default_rng(0)
    model.train()
    losses = []
    for k in range(total):
        if given.what == "fixed-batches":
            # Those of the curves at batch 32: the first 30,000 images, none of them changed.
            chosen = draws.integers(0, 30000, BATCH)
            batch = x[chosen]
        else:
            if k % in_epoch == 0:
                order = draws.permutation(n_train)
            chosen = order[k % in_epoch * BATCH :][:BATCH]
            batch = random_crop(x[chosen], draws, padding=recipe.crop)
            batch = random_flip(batch, draws) if recipe.flip else batch
        rate, t = given.lr * min(1.0, (k + 1) / 400), n_steps
        if cycle:
            epoch = k // in_epoch
            rate = learning_rate(given.lr, epoch=epoch, step=k, schedule="one-cycle", total_steps=total)
            t = time_steps(n_steps, 6, epoch=epoch, epochs=given.epochs)
        for group in sgd.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(on_device(batch, recipe), time_step=t), y[chosen])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            sys.exit(f"step {k}: the loss is {losses[-1]}")
        if k % 10 == 9:
            print(k + 1, f"{rate:.5f}", t, f"{np.mean(losses[-10:]):.4f}", flush=True)
    if cycle:
        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(on_device(x[i : i + 500], recipe)).argmax(1) == y[i : i + 500]).sum())
                for i in range(n_train, len(x), 500)
            )
        print(f"accuracy {right / HELD_OUT:.4f}")


if __name__ == "__main__":
    main()
