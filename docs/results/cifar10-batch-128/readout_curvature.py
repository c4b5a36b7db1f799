"""Training losses of ide_ref on CIFAR-10 beside the learning rate that its readout bears: what `ours-*.txt` hold.

    python readout_curvature.py --readout-rate 1 --steps 320

One line for every ten steps: step, learning rate, share of it that the readout has, mean loss of the ten batches, share
of their images that were right; then, of the first 128 training images as the network is now, the mean rate of the
neurons that are read, the largest curvature of the loss in the readout's weights, and the readout's rate over the
largest one at which descent with momentum 0.9 is stable there, 2 (1 + 0.9)/curvature.
"""

import argparse
import tempfile
from dataclasses import replace

import numpy as np

from ide_ref import freeze, presets, read_out, simulate
from ide_ref.datasets import load
from ide_ref.training import evaluation, loop
from ide_ref.training.schedule import learning_rate


def curvature(a, logits, n_iterations=60):
    """Largest eigenvalue of the Hessian of the mean cross-entropy in the weights W of logits = W a + b."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    direction = np.random.default_rng(0).normal(size=(p.shape[1], a.shape[1]))
    for _ in range(n_iterations):
        change = p * (a @ direction.T)
        change -= p * change.sum(axis=1, keepdims=True)
        direction = change.T @ a / len(a)
        found = np.linalg.norm(direction)
        if found == 0.0:  # no neuron that is read has fired
            break
        direction /= found
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--readout-rate", type=float, default=1.0)
    p.add_argument("--clip-norm", type=float)
    p.add_argument("--steps", type=int, default=320)
    given = p.parse_args()
    preset = presets.load("cifar10-alexnet-f", norm="kernel")
    changes = {"schedule": "one-cycle", "epochs": 5, "lr": 0.2, "first_steps": 6, "solver": "gmres", "max_iter": 4}
    changes |= {"readout_rate": given.readout_rate, "clip_norm": given.clip_norm, "allow_unconverged": True}
    preset = replace(preset, dropout=0.0, recipe=replace(preset.recipe, **changes))
    recipe, data, seen = preset.recipe, load("cifar10"), {"samples": 0, "loss": 0.0, "correct": 0}
    n_read, in_epoch = preset.network.readout.synapse.n_in, -(-len(data.y_train) // recipe.batch_size)

    def tell(state, event):
        nonlocal seen
        if event != "step" or state.step % 10:
            return False
        samples, loss, right = (state.totals[name] - seen[name] for name in ("samples", "loss", "correct"))
        seen = dict(state.totals)
        x, _ = evaluation.load_batch(state.preset, data, "train", np.arange(128))
        frozen = freeze(state.preset.network, state.params, x, training=True, rng=np.random.default_rng(0))
        rates = simulate(frozen, x, recipe.first_steps)
        a = rates.a[:, -n_read:].astype(float)
        found = curvature(a, read_out(frozen, rates).astype(float))
        course = {"schedule": recipe.schedule, "total_steps": recipe.epochs * in_epoch}
        rate = learning_rate(recipe.lr, epoch=0, step=state.step - 1, **course)
        borne = rate * recipe.readout_rate * found / 3.8
        words = f"{loss / samples:.3f} {right / samples:.3f} {a.mean():.3f} {found:.1f} {borne:.3f}"
        print(state.step, f"{rate:.5f}", recipe.readout_rate, words, flush=True)
        return state.step >= given.steps

    if given.steps > in_epoch:
        p.error(f"--steps is {given.steps}; expected at most those of the first epoch, {in_epoch}")
    with tempfile.TemporaryDirectory() as out:
        loop.train(preset, data, out=f"{out}/run", callback=tell)


if __name__ == "__main__":
    main()
