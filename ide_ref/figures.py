"""Every plot. Matplotlib is imported when one is drawn; no global state is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ide_ref._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    path = Path(path)
    buffer = io.BytesIO()
    # No date in the file: the same numbers make the same bytes.
    metadata = {"Date": None} if path.suffix == ".svg" else None
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
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("epoch", color=MUTED)
        ax.set_ylabel(unit, color=MUTED)
        ax.yaxis.set_major_formatter(_plain)
        ax.yaxis.set_minor_formatter(_plain_where_sparse)
        ax.tick_params(which="minor", labelsize=8, colors=MUTED)
        for before, after in zip(history, history[1:], strict=False):
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


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _plain_where_sparse(value: float, _: int) -> str:
    """Labels of the minor ticks 2 and 5 of each decade."""
    leading = f"{value:.0e}"[0]
    return f"{value:g}" if leading in "25" else ""
