"""The explorer's first picture as a still and as a film, docs/images/explorer.png and explorer.gif.

    python docs/explorer/make_figure.py

Spikes, rates, a* and bounds are the package's: ``simulate``, ``find_equilibrium`` and ``error_bound``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ide_ref import (
    IF,
    Connection,
    Dense,
    Network,
    Population,
    Readout,
    error_bound,
    figures,
    find_equilibrium,
    freeze,
    simulate,
)
from ide_ref.theory import conditions

IMAGES = Path(__file__).parent.parent / "images"
SOFT = "#cfdff5"
N, N_STEPS, WINDOW = 32, 200, 30
FRAMES = 56


def settle() -> dict[str, np.ndarray]:
    """A run of 32 IF neurons with γ = 0.7, in the order of their a*."""
    rng = np.random.default_rng(7)
    network = Network(
        (4,),
        (Population("a1", (N,)),),
        (
            Connection("in", "input", "a1", Dense((4,), (N,)), bias=True),
            Connection("back", "a1", "a1", Dense((N,), (N,)), bias=False),
        ),
        Readout("a1", Dense((N,), (2,))),
        IF(1.0),
    )
    W = rng.uniform(-1, 1, (N, N)) * (rng.random((N, N)) < 0.15)
    own = {"in.weight": 0.5 * rng.uniform(-1, 1, (N, 4)), "in.bias": np.full(N, 0.3), "back.weight": W}
    params = network.init(rng) | own
    params["back.weight"] = 0.7 * W / conditions(freeze(network, params)).stacked.value
    frozen = freeze(network, params)
    x = rng.random((1, 4))
    rates = simulate(frozen, x, N_STEPS, record=True)
    a_star = find_equilibrium(frozen, x).a[0]
    bound = error_bound(frozen, x, rates)
    order = np.argsort(a_star, kind="stable")
    return {
        "s": rates.recording.s[0][:, order],
        "a": rates.recording.rates("a1")[0].reshape(N_STEPS, N)[:, order],
        "a_star": a_star[order],
        "error": bound.total("error")[0],
        "one_step": bound.total("one_step")[0],
        "iterated": bound.total("iterated")[0],
    }


def draw(run: dict[str, np.ndarray], t: int, *, dpi: int) -> np.ndarray:
    """The picture at step t, as an image (rows, columns, 3)."""
    figure, (rain, right) = figures.new_figure(2, width=4.4, height=3.5)
    figure.set_dpi(dpi)
    neurons = np.arange(N)
    # Rain above 1.15, the newest highest; gauges below.
    ground, top = 1.2, 3.1
    for age in range(min(WINDOW, t)):
        fired = neurons[run["s"][t - 1 - age] > 0]
        y = top - (top - ground) * (age + 0.5) / WINDOW
        rain.plot(fired, np.full(fired.size, y), "|", color=figures.TEST, markersize=3.5, alpha=1 - 0.7 * age / WINDOW)
    rain.bar(neurons, run["a"][t - 1], width=0.76, color=SOFT)
    rain.hlines(run["a"][t - 1], neurons - 0.38, neurons + 0.38, color=figures.TEST, linewidth=1.2)
    rain.hlines(run["a_star"], neurons - 0.45, neurons + 0.45, color=figures.ACCENT, linewidth=1.6)
    rain.set(xlim=(-1, N), ylim=(0, top + 0.05), xticks=[], yticks=[0, 0.5, 1], xlabel="neurons, in the order of a*")
    rain.grid(False)
    rain.set_title(f"spikes, a[t] and a*, t = {t}", loc="left", fontsize=10, color=figures.MUTED)

    times = np.arange(1, t + 1)
    right.set(xscale="log", yscale="log", xlim=(0.9, 1.15 * N_STEPS), xlabel="time step t")
    right.set_ylim(0.5 * run["error"].min(), 1.6 * max(run["iterated"].max(), run["one_step"].max()))
    right.plot(times, run["iterated"][:t], "--", color=figures.ACCENT, linewidth=1, label="its sum from t = 0")
    right.plot(times, run["one_step"][:t], color=figures.ACCENT, linewidth=1, label="(ERR), from t − 1 to t")
    right.plot(times, run["error"][:t], color=figures.TEST, linewidth=1.8, label="‖a[t] − a*‖")
    right.plot(t, run["error"][t - 1], "o", color=figures.TEST, markersize=4)
    right.set_title("distance from the equilibrium", loc="left", fontsize=10, color=figures.MUTED)
    right.legend(frameon=False, fontsize=8, labelcolor=figures.MUTED, loc="lower left")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()


def main() -> None:
    run = settle()
    Image.fromarray(draw(run, N_STEPS, dpi=160)).save(IMAGES / "explorer.png", optimize=True)
    # Slowly at first, then evenly on the logarithmic axis.
    steps = np.unique(np.round(np.geomspace(1, N_STEPS, 3 * FRAMES)).astype(int))
    steps = steps[np.unique(np.linspace(0, steps.size - 1, FRAMES).round().astype(int))]
    film = [Image.fromarray(draw(run, int(t), dpi=90)) for t in steps]
    # One palette for all, so that nothing flickers.
    palette = film[-1].quantize(48)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in film]
    durations = [140] * (len(frames) - 1) + [2500]
    frames[0].save(
        IMAGES / "explorer.gif", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )


if __name__ == "__main__":
    main()
