"""The picture of the start page, by ``ide_ref.equations``: ``python docs/examples/overview.py FILE.png``."""

import sys

import matplotlib
import numpy as np

from ide_ref import equations as eq

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N, T, V_TH = 6, 60, 2.0

rng = np.random.default_rng(3)
W = rng.normal(size=(N, N))
W *= 0.7 * V_TH / np.linalg.norm(W, 2)
x, g = rng.uniform(0.3, 1.5, (1, N)), rng.normal(size=(1, N))
keep = np.ones((1, N))
maps = [eq.Map(-1, 0, np.eye(N), np.zeros(N), None, keep), eq.Map(0, 0, W, np.zeros(N), None, keep)]
net = eq.Network([N], maps, leak=1.0, v_th=V_TH)

(spikes,) = eq.rollout(net, np.repeat(x[:, None], T, axis=1))
rates = np.array([eq.average(spikes[:, :t], net.leak)[0] for t in range(1, T + 1)])
a_star = eq.equilibrium(net, x, 200)
m = eq.mask(net, a_star, x)
(beta,) = eq.beta(net, m, [g])
iterates = [g]
for _ in range(15):
    iterates.append(g + (m[0] * iterates[-1]) @ W / V_TH)
gradient = eq.hebb(m[0] * beta / V_TH, a_star[0])

colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, N))
with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
    figure, axes = plt.subplots(2, 2, figsize=(6, 5.2), layout="constrained")
    (raster, settling), (second, product) = axes
    for i in range(N):
        raster.vlines(np.flatnonzero(spikes[0, :, i]) + 1, i + 0.6, i + 1.4, color=colours[i], linewidth=1.5)
        settling.plot(range(1, T + 1), rates[:, i], color=colours[i])
        settling.axhline(a_star[0][0, i], color=colours[i], linestyle=":", linewidth=1)
        second.plot(np.array(iterates)[:, 0, i], color=colours[i], marker=".")
        second.axhline(beta[0, i], color=colours[i], linestyle=":", linewidth=1)
    raster.set(title="spikes", xlabel="step t", ylabel="neuron")
    settling.set(title="rates settle at a*", xlabel="step t", ylabel="a[t]", ylim=(0, 1))
    second.set(title="gradients settle at β*", xlabel="iteration", ylabel="β")
    largest = np.abs(gradient).max()
    image = product.imshow(gradient, cmap="PuOr", vmin=-largest, vmax=largest, extent=(0.5, N + 0.5, N + 0.5, 0.5))
    product.set(title=r"$\nabla W = M\,\beta^* {a^*}^T/\,V_{th}$", xlabel="from neuron", ylabel="to neuron")
    figure.colorbar(image, ax=product)
    figure.savefig(sys.argv[1], dpi=160)
