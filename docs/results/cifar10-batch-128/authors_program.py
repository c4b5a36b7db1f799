"""Training losses of the paper authors' program on CIFAR-10, with schedules of our own: what the texts beside it hold.

Needs PyTorch, ide_ref, and the authors' modules (https://github.com/pkuxmq/IDE-FSNN) on the module path, for example

    PYTHONPATH=IDE-FSNN python authors_program.py recipe --steps 370
    PYTHONPATH=IDE-FSNN python authors_program.py one-cycle --lr 0.2 --dropout 0

One line for every ten steps: step, learning rate, T, mean loss of the ten batches; last the accuracy on the 5,000
training images that ``one-cycle`` holds out. The texts were drawn by an earlier form of it, which shifted and mirrored
on the device: what is drawn at random differs, so numbers come back but for that.
"""

import argparse
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from models.snn_ide_conv_multilayer import SNNIDEConvMultiLayerNet

from ide_ref import presets
from ide_ref.datasets import load, normalise, random_crop, random_flip
from ide_ref.training.schedule import learning_rate, time_steps

BATCH, HELD_OUT = 128, 5000
ALEXNET = {
    "c_in": 3, "c_hidden": 96, "num_classes": 10, "kernel_size_x": 3, "stride_x": 2, "padding_x": 1, "c_s1": 256,
    "c_s2": 384, "c_s3": 384, "c_s4": 256, "kernel_size_s": 3, "h_hidden": 8, "w_hidden": 8, "vth": 2.0, "leaky": 0.99,
}  # fmt: skip
RECIPE = presets.load("cifar10-alexnet-f").recipe
device = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(x):
    return torch.tensor(normalise(x, RECIPE.mean, RECIPE.std), device=device)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=("recipe", "fixed-batches", "one-cycle"))
    p.add_argument("--steps", type=int, default=370, help="of recipe and fixed-batches")
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--dropout", type=float, default=0.2)
    p.add_argument("--epochs", type=int, default=5, help="of one-cycle")
    given = p.parse_args()
    torch.manual_seed(0)
    data = load("cifar10")
    x, y = data.x_train, torch.tensor(data.y_train.astype(np.int64), device=device)
    cycle = given.what == "one-cycle"
    solver, n_products, n_steps = ("damped", 4, 20) if cycle else ("broy", 30, 30)
    parts = {**ALEXNET, "dropout": given.dropout, "threshold": n_products, "time_step": n_steps}
    model = SNNIDEConvMultiLayerNet({"MODEL": parts, "OPTIM": {"solver": solver}}).to(device)
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
            batch = random_flip(random_crop(x[chosen], draws, padding=RECIPE.crop), draws)
        rate, t = given.lr * min(1.0, (k + 1) / 400), n_steps
        if cycle:
            epoch = k // in_epoch
            rate = learning_rate(given.lr, epoch=epoch, step=k, schedule="one-cycle", total_steps=total)
            t = time_steps(n_steps, 6, epoch=epoch, epochs=given.epochs)
        for group in sgd.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(on_device(batch), time_step=t), y[chosen])
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
                int((model(on_device(x[i : i + 500])).argmax(1) == y[i : i + 500]).sum())
                for i in range(n_train, len(x), 500)
            )
        print(f"accuracy {right / HELD_OUT:.4f}")


if __name__ == "__main__":
    main()
