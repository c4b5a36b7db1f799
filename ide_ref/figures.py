"""Every plot. Matplotlib is imported when one is drawn; no global state is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ide_ref._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ide_ref.datasets import Events

TRAIN, TEST, ACCENT, MUTED = "#8c96a8", "#1f5fbf", "#c8452d", "#5b6470"


def new_figure(n_columns: int = 1, *, width: float = 4.6, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure in the house style, and its axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n_columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, n_columns, squeeze=False)[0])
    for ax in axes:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelsize=9)
        ax.grid(True, color="#e4e7ec", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's ending (PNG, SVG), whole or not at all."""
    from matplotlib import rc_context

    path = Path(path)
    buffer = io.BytesIO()
    # No date and no random names in the file: the same numbers make the same bytes.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "ide_ref"}):
        figure.savefig(buffer, format=path.suffix[1:], dpi=160, metadata=metadata)
    write_atomically(path, buffer.getvalue())


def training_curves(history: Sequence[Mapping[str, Any]], *, title: str, path: str | Path) -> None:
    """Loss and test error over the epochs, with the drops of the learning rate marked.

    Parameters
    ----------
    history : sequence of mapping
        Lines of ``metrics.jsonl``.
    title : str
    path : path
        Ends in .png or .svg.
    """
    epochs = [line["epoch"] for line in history]
    figure, (left, right) = new_figure(2)
    marker = "o" if len(epochs) < 15 else None
    for ax, unit, values in (
        (left, "cross-entropy", lambda split: [line[f"{split}_loss"] for line in history]),
        (right, "error (%)", lambda split: [100 * (1 - line[f"{split}_accuracy"]) for line in history]),
    ):
        ax.plot(epochs, values("train"), color=TRAIN, label="train (with dropout)", marker=marker, markersize=3)
        ax.plot(epochs, values("test"), color=TEST, label="test", marker=marker, markersize=3)
        ax.set_yscale("log")
        ax.locator_params(axis="x", integer=True)
        ax.set_xlabel("epoch", color=MUTED)
        ax.set_ylabel(unit, color=MUTED)
        ax.yaxis.set_major_formatter(_plain)
        ax.yaxis.set_minor_formatter(_plain_where_sparse)
        ax.tick_params(which="minor", labelsize=8, colors=MUTED)
        for before, after in pairwise(history):
            if after["lr"] < 0.5 * before["lr"]:
                ax.axvline(before["epoch"] + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    accuracies = [line["test_accuracy"] for line in history]
    best = accuracies.index(max(accuracies))
    right.plot(epochs[best], 100 * (1 - accuracies[best]), "o", color=ACCENT, markersize=5)
    right.annotate(
        f"best {accuracies[best]:.2%}",
        (epochs[best], 100 * (1 - accuracies[best])),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
        color=ACCENT,
        fontsize=9,
    )
    left.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    left.set_title(title, loc="left", fontsize=11)
    right.set_title(f"last {accuracies[-1]:.2%}", loc="left", fontsize=11)
    save(figure, path)


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def _plain_where_sparse(value: float, _: float) -> str:
    """Labels of the minor ticks 2 and 5 of each decade."""
    leading = f"{value:.0e}"[0]
    return f"{value:g}" if leading in "25" else ""


def event_picture(events: Events, *, title: str, path: str | Path, n_windows: int = 3) -> None:
    """A recording as pictures of successive windows: ON events red, OFF events blue.

    Parameters
    ----------
    events : Events
    title : str
    path : path
        Ends in .png or .svg.
    n_windows : int
        Equal parts of the recording's time; N-MNIST's sensor makes three saccades.
    """
    import numpy as np

    figure, axes = new_figure(n_windows, width=2.6, height=2.9)
    edges = np.linspace(0, int(events.t[-1]) + 1, n_windows + 1) if len(events.t) else np.zeros(n_windows + 1)
    for ax, start, end in zip(axes, edges[:-1], edges[1:], strict=True):
        inside = (events.t >= start) & (events.t < end)
        size = int(max(events.x.max(initial=0), events.y.max(initial=0))) + 1
        counts = np.zeros((size, size))
        np.add.at(counts, (events.y[inside], events.x[inside]), np.where(events.polarity[inside] > 0, 1.0, -1.0))
        limit = max(1.0, float(np.abs(counts).max()))
        ax.imshow(counts, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(f"{start / 1000:.0f} to {end / 1000:.0f} ms", fontsize=9, color=MUTED)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)
