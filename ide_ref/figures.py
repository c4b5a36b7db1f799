"""Every plot. Matplotlib is imported when one is drawn; no global state is touched.

Each function returns its Figure, draws into ``ax`` where that is given (one Axes, or one per panel), and writes a file
where there is a ``path``, whose ending decides the format: .png or .svg.

Source: what is drawn is computed elsewhere, by the functions that ``docs/equations.md`` lists by their equation.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ide_ref._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ide_ref.datasets import Events
    from ide_ref.equilibrium import Equilibrium
    from ide_ref.simulation import Rates, Recording
    from ide_ref.theory import ErrorBound
    from ide_ref.verify import Budget, FixedPointReport, StepSweep

    Panels = Axes | Sequence[Axes] | None

POINTS = 160
"""Steps of a run that are drawn of a long one."""

TRAIN, TEST, ACCENT, MUTED = "#8c96a8", "#1f5fbf", "#c8452d", "#5b6470"


def available() -> bool:
    """Whether Matplotlib is installed."""
    return find_spec("matplotlib") is not None


def new_figure(
    n_columns: int = 1, *, width: float = 4.6, height: float = 3.4, ax: Panels = None
) -> tuple[Figure, list[Axes]]:
    """Axes side by side in the house style, and their figure: a new one, or that of the axes given.

    ValueError where the axes given are not as many as the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if ax is None:
        figure = Figure(figsize=(width * n_columns, height), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, n_columns, squeeze=False)[0])
    else:
        given: Any = ax
        axes = list(given) if np.iterable(given) else [given]
        if len(axes) != n_columns:
            raise ValueError(f"ax has {len(axes)} axes; expected {n_columns}, one per panel")
        figure = axes[0].figure
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(MUTED)
        one.tick_params(colors=MUTED, labelsize=9)
        for label in (one.xaxis.label, one.yaxis.label):
            label.set_color(MUTED)
        one.grid(True, color="#e4e7ec", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, *paths: str | Path | None) -> Figure:
    """The figure, written in the format of each path's ending (PNG, SVG), each file whole or not at all."""
    from matplotlib import rc_context

    wanted = [Path(path) for path in paths if path is not None]
    if not wanted:
        return figure
    # Laid out once: each drawing would do it anew, twice a file.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for path in wanted:
        buffer = io.BytesIO()
        # No date and no random names in the file: the same numbers make the same bytes.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with rc_context({"svg.hashsalt": "ide_ref"}):
            figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
        write_atomically(path, buffer.getvalue())
    return figure


def _drops(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """The epochs after which the learning rate drops below half, where one of the two rates holds for some epochs.

    Under a schedule that moves it all the time, a drop is no event.
    """
    held = [list(lines) for _, lines in groupby(history, key=lambda line: line["lr"])]
    return [
        before[-1]["epoch"]
        for before, after in pairwise(held)
        if after[0]["lr"] < 0.5 * before[0]["lr"] and max(len(before), len(after)) > 1
    ]


def training_curves(
    history: Sequence[Mapping[str, Any]], *, title: str, path: str | Path | None = None, ax: Panels = None
) -> Figure:
    """Loss and test error over the epochs, lines of ``metrics.jsonl``, with the drops of the learning rate marked."""
    from matplotlib.ticker import MaxNLocator

    epochs = [line["epoch"] for line in history]
    figure, (left, right) = new_figure(2, ax=ax)
    points = _points(len(epochs))
    # A logarithmic axis has no place for 0.
    splits = ("train", "test")
    losses = [[max(line[f"{split}_loss"], 1e-8) for line in history] for split in splits]
    errors = [[max(100 * (1 - line[f"{split}_accuracy"]), 1e-2) for line in history] for split in splits]
    for ax, unit, (train, test) in ((left, "cross-entropy", losses), (right, "error (%)", errors)):
        ax.plot(epochs, train, color=TRAIN, label="train (batches as met)", **points)
        ax.plot(epochs, test, color=TEST, label="test", **points)
        # One epoch has one tick.
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set(xlabel="epoch", ylabel=unit, yscale="log")
        _plain_numbers(ax.yaxis)
        for epoch in _drops(history):
            ax.axvline(epoch + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    accuracies = [line["test_accuracy"] for line in history]
    best = accuracies.index(max(accuracies))
    right.plot(epochs[best], errors[1][best], "o", color=ACCENT, markersize=5)
    _legend(left)
    left.set_title(title, loc="left", fontsize=11)
    words = f"test error {1 - accuracies[-1]:.2%} at the end, lowest {1 - accuracies[best]:.2%} (dot)"
    right.set_title(words, loc="left", fontsize=11)
    return save(figure, path)


def convergence(
    panels: Sequence[Mapping[str, Any]], *, title: str, paths: Sequence[str | Path] = (), ax: Panels = None
) -> Figure:
    """‖a[t] − a*‖ over t beside the bounds of (ERR), log-log, a panel per neuron.

    Parameters
    ----------
    panels : sequence of mapping
        ``name``, ``times`` (K,), ``error``, ``one_step`` and ``iterated`` (B, K) (a line per sample; the median is
        drawn, and the range of the errors), ``slope`` of the error from time ``slope_from`` on (NaN for none), and
        ``limit`` (K,), its floor or envelope, or None where no condition holds. A panel without ``error`` has
        ``residual`` (B, K), how far the rates are from solving (FP), and nothing of a* is drawn.
    title : str
        May have a second line.
    """
    figure, axes = new_figure(len(panels), height=3.9, ax=ax)
    for ax, panel in zip(axes, panels, strict=True):
        times = np.asarray(panel["times"])
        found = panel.get("error") is not None
        error = np.asarray(panel["error"] if found else panel["residual"])
        if ax is not axes[0]:
            ax.sharey(axes[0])
        ax.set(xscale="log", yscale="log", xlabel="time step t")
        ax.fill_between(times, error.min(axis=0), error.max(axis=0), color=TEST, alpha=0.18, linewidth=0)
        steps = _points(len(times))
        observed = "‖a[t] − a*‖, observed" if found else "‖f(a[t]) − a[t]‖, observed"
        ax.plot(times, np.median(error, axis=0), color=TEST, label=observed, **steps)
        _plain_numbers(ax.xaxis)
        _plain_numbers(ax.yaxis)
        slope = _draw_bounds(ax, panel, times, error) if found else ""
        ax.set_title(panel["name"] + slope, loc="left", fontsize=10, color=MUTED)
        _legend(ax, 8, loc="lower left")
    drawn = {"distance from a*, in " if panel.get("error") is not None else "residual of (FP), in " for panel in panels}
    # Where the panels differ, their legends say what each shows.
    axes[0].set_ylabel(f"{drawn.pop() if len(drawn) == 1 else ''}spikes per step")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save(figure, *paths)


def distance(
    bounds: ErrorBound | Sequence[ErrorBound], *, title: str = "", path: str | Path | None = None, ax: Panels = None
) -> Figure:
    """‖a[t] − a*‖ of any network's run beside its bounds, from :func:`ide_ref.error_bound`; a panel per run."""
    every = bounds if isinstance(bounds, Sequence) else [bounds]
    panels = [panel(bound, name=bound.equilibrium.network.neurons[0].name.upper()) for bound in every]
    return convergence(panels, title=title, paths=[] if path is None else [path], ax=ax)


def panel(bound: ErrorBound, *, name: str) -> dict[str, Any]:
    """What :func:`convergence` draws of a run's (ERR), IF or LIF by ``name``, and what else is told of it."""
    times = times_drawn(len(bound.times))
    error = bound.total("error")[:, times - 1]
    # Two decades, but not the first steps, in which the populations of a deep network wake one by one.
    slope_from = int(max(times[-1] // 100, min(10, times[-1] // 4), 1))
    late = times >= slope_from
    # A shorter run has only the first steps to fit.
    long_enough = slope_from >= 10
    # A sample that arrives exactly has no logarithm.
    middle = np.maximum(np.median(error, axis=0)[late], np.finfo(float).tiny)
    limit = bound.envelope() if name == "IF" else np.repeat(bound.floor()[:, None], len(bound.times), axis=1)
    limit = np.linalg.norm(limit, axis=2)[:, times - 1].max(axis=0)
    return {
        "name": name,
        "times": times,
        "error": error,
        "one_step": bound.total("one_step")[:, times - 1],
        "iterated": bound.total("iterated")[:, times - 1],
        "limit": limit if np.all(np.isfinite(limit)) else None,
        "slope": float(np.polyfit(np.log(times[late]), np.log(middle), 1)[0]) if long_enough else float("nan"),
        "slope_from": slope_from,
        "tightness": bound.tightness,
        "violation": bound.violation,
        "u_plus_sup": float(bound.u_plus_sup.max()),
        "equilibrium_residual": float(bound.equilibrium.residual.max()),
        "populations": _populations(bound.equilibrium),
        "problem": None,
    }


def times_drawn(n_steps: int) -> NDArray[np.int64]:
    """Steps t of a run, (M,), at most `n_steps` steps, evenly spaced on a logarithmic axis."""
    return np.unique(np.round(np.geomspace(1, n_steps, POINTS)).astype(np.int64))


def _populations(found: Equilibrium) -> dict[str, dict[str, float]]:
    """a* of each population: mean, and the shares that never fire and that fire at every step."""
    shares = {}
    for i, population in enumerate(found.network.populations):
        a = found.a[:, found.network.slice_of(i)]
        silent, saturated = float((a == 0).mean()), float((a == 1).mean())
        shares[population.name] = {"mean_rate": float(a.mean()), "silent": silent, "saturated": saturated}
    return shares


def raster(
    rates: Rates, *, sample: int = 0, title: str = "", path: str | Path | None = None, ax: Panels = None
) -> Figure:
    """Spikes of one sample: a dot for each, time to the right, populations one above the other.

    The rates are from ``simulate(..., record=True)``.
    """
    recording = recorded(rates)
    figure, (panel,) = new_figure(width=6.0, height=3.6, ax=ax)
    ends = recording.network.offsets
    for i, population in enumerate(recording.network.populations):
        t, neuron = np.nonzero(recording.spikes(population.name)[sample].reshape(rates.n_steps, -1))
        panel.plot(t + 1, ends[i] + neuron, "|", color=(TEST, MUTED)[i % 2], markersize=3, label=population.name)
    panel.set(xlabel="time step t", ylabel="neuron", xlim=(0, rates.n_steps + 1), ylim=(-1, ends[-1]))
    panel.set_yticks((ends[:-1] + ends[1:]) / 2, [p.name for p in recording.network.populations])
    panel.grid(False)
    panel.set_title(title, loc="left", fontsize=11)
    return save(figure, path)


def rates_over_time(
    rates: Rates,
    population: str,
    *,
    equilibrium: Equilibrium | None = None,
    sample: int = 0,
    n_neurons: int = 8,
    title: str = "",
    path: str | Path | None = None,
    ax: Panels = None,
) -> Figure:
    """Average rates a[t] of one population's most different neurons as they settle, dashed a* where it is given.

    The rates are from ``simulate(..., record=True)``, the equilibrium is that of the same input.
    """
    a = recorded(rates).rates(population)[sample].reshape(rates.n_steps, -1)
    order = np.argsort(a[-1], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, n_neurons).round().astype(int))]
    figure, (panel,) = new_figure(width=6.0, height=3.6, ax=ax)
    t = np.arange(1, rates.n_steps + 1)
    for k, neuron in enumerate(chosen):
        panel.plot(t, a[:, neuron], color=TEST, linewidth=1.2, alpha=0.8, label="a[t]" if k == 0 else None)
        if equilibrium is not None:
            star = equilibrium.of(population)[sample].reshape(-1)[neuron]
            panel.axhline(star, color=ACCENT, linewidth=1, linestyle="--", label="a*" if k == 0 else None)
    panel.set(xlabel="time step t", ylabel="spikes per step", xscale="log")
    _plain_numbers(panel.xaxis)
    _legend(panel)
    panel.set_title(title or population, loc="left", fontsize=11)
    return save(figure, path)


def recorded(rates: Rates) -> Recording:
    """What a rollout to these rates recorded; ValueError where it did not."""
    if rates.recording is None:
        raise ValueError("rates has no recording of every step; expected one from simulate(..., record=True)")
    return rates.recording


def _draw_bounds(ax: Axes, panel: Mapping[str, Any], times: NDArray, error: NDArray) -> str:
    """The bounds of a panel of :func:`convergence`; the slope in words, where it has one."""
    steps: dict[str, Any] = {"color": ACCENT, "linewidth": 1, **_points(len(times))}
    dotted: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": ":"}
    ax.plot(times, np.median(panel["one_step"], axis=0), label="(ERR), from t − 1 to t", **steps)
    iterated = np.median(panel["iterated"], axis=0)
    # Beyond (COND) the sum grows without end: only its beginning says something.
    shown = iterated <= 100 * error.max()
    if shown.sum() > 1 or len(times) == 1:
        ax.plot(times[shown], iterated[shown], linestyle="--", label="its sum from t = 0", **steps)
    if panel["name"] == "LIF" and panel["limit"] is not None:
        ax.plot(times, panel["limit"], label="limit error at most, (FLOOR)", **dotted)
    if panel["name"] != "IF":
        return ""
    ax.plot(times, np.median(error, axis=0)[-1] * times[-1] / times, label="1/t", **dotted)
    slope = f": slope {panel['slope']:.2f} from t = {panel['slope_from']} on".replace("-", "−")
    return slope if np.isfinite(panel["slope"]) else ""


def _points(n_points: int) -> dict[str, Any]:
    """Few points are shown beside their line: one is no line."""
    return {"marker": "o" if n_points < 15 else None, "markersize": 3}


def _legend(ax: Axes, size: int = 9, **place: Any) -> None:
    ax.legend(frameon=False, fontsize=size, labelcolor=MUTED, **place)


def _plain_numbers(axis: Axis) -> None:
    """Numbers without powers of ten on a logarithmic axis: the decades', and those between where they are few."""

    def between(value: float, _: float) -> str:
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        labelled = "123456789" if decades < 0.5 else "23457" if decades < 1 else "25" if decades < 2 else ""
        return f"{value:g}" if f"{value:.0e}"[0] in labelled else ""

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(between)
    axis.set_tick_params(which="minor", labelsize=8, labelcolor=MUTED, color=MUTED)


def event_picture(
    events: Events, *, title: str, path: str | Path | None = None, n_windows: int = 3, ax: Panels = None
) -> Figure:
    """A recording as pictures of equal parts of its time (N-MNIST has three saccades): ON events red, OFF blue."""
    figure, axes = new_figure(n_windows, width=2.6, height=2.9, ax=ax)
    edges = np.linspace(0, int(events.t[-1]) + 1, n_windows + 1) if len(events.t) else np.zeros(n_windows + 1)
    for ax, start, end in zip(axes, edges[:-1], edges[1:], strict=True):
        inside = (events.t >= start) & (events.t < end)
        size = int(max(events.x.max(initial=0), events.y.max(initial=0))) + 1
        counts = np.zeros((size, size))
        np.add.at(counts, (events.y[inside], events.x[inside]), np.where(events.polarity[inside] > 0, 1.0, -1.0))
        limit = max(1.0, float(np.abs(counts).max()))
        ax.imshow(counts, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(f"{start / 1000:.0f} to {end / 1000:.0f} ms", fontsize=9, color=MUTED)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def step_sweep(sweep: StepSweep, *, title: str, path: str | Path | None = None, ax: Panels = None) -> Figure:
    """The V-shaped curve of :func:`ide_ref.verify.sweep_steps`, with open circles where a kink was crossed."""
    figure, (ax,) = new_figure(width=5.6, height=3.8, ax=ax)
    for (name, errors), color in zip(sweep.errors.items(), (TRAIN, ACCENT, TEST), strict=True):
        crossed = sweep.crossed[name]
        floor = errors.clip(min=1e-17)
        ax.loglog(sweep.steps, floor, color=color, linewidth=1.4, label=name)
        ax.loglog(sweep.steps[~crossed], floor[~crossed], "o", color=color, markersize=4)
        ax.loglog(sweep.steps[crossed], floor[crossed], "o", color=color, markersize=4, markerfacecolor="white")
    ax.set(xlabel="step h", ylabel="relative error")
    _legend(ax)
    ax.set_title(title, loc="left", fontsize=11)
    return save(figure, path)


def remainders(
    report: FixedPointReport, *, title: str = "", path: str | Path | None = None, ax: Panels = None
) -> Figure:
    """Taylor remainders of :func:`ide_ref.verify.check_fixed_point` over the step, each relative to the derivative.

    Without the gradient they fall like h, with a right one like h², down to rounding.
    """
    figure, (panel,) = new_figure(width=5.6, height=3.8, ax=ax)
    kinds = {"without the gradient": ("r1", TRAIN), "with the gradient": ("r2", TEST), "rounding": ("noise", "#d9a441")}
    for row in report.rows:
        steps, scale = np.array(row.steps), row.scale or 1.0
        for label, (part, color) in kinds.items():
            values = np.array(getattr(row, part)) / scale
            if row.verdict == "wrong" and part == "r2":
                label, color = "with the gradient, wrong", ACCENT
            panel.loglog(steps, values.clip(min=1e-18), ".-", color=color, linewidth=1, markersize=4, label=label)
    panel.set(xlabel="step h, in parts of the parameters", ylabel="remainder")
    panel.xaxis.set_minor_formatter("")
    handles = dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    panel.legend(handles.values(), handles, frameon=False, fontsize=9, labelcolor=MUTED)
    panel.set_title(f"{title}: {report.verdict}" if title else report.verdict, loc="left", fontsize=11)
    return save(figure, path)


def budget_over_time(
    budgets: Sequence[Budget], *, title: str, path: str | Path | None = None, ax: Panels = None
) -> Figure:
    """What :func:`ide_ref.verify.explain_over_time` found: the parts relative to the exact gradient, over T."""
    figure, (left, right) = new_figure(2, width=5.0, height=3.8, ax=ax)
    steps = [budget.n_steps for budget in budgets]
    lines = {part.name: [b.part(part.name) for b in budgets] for part in budgets[0].parts}
    lines["whole error"] = [b.total for b in budgets]
    colors = cycle((TEST, ACCENT, "#d9a441", "#4c9f70", "#7d5ba6", TRAIN, "#3aa6b9"))
    for name, parts in lines.items():
        norms = [part.norm for part in parts]
        if not any(norms):
            continue
        color = "black" if name == "whole error" else next(colors)
        left.loglog(steps, norms, ".-", color=color, linewidth=1.4, label=name)
        if name != "whole error":
            right.semilogx(steps, [part.cosine for part in parts], ".-", color=color, linewidth=1.4)
    right.semilogx(steps, [b.cosine for b in budgets], ".--", color="black", linewidth=1.4, label="training gradient")
    left.set(xlabel="T", ylabel="norm / norm of the exact gradient")
    right.set(xlabel="T", ylabel="cosine with the exact gradient", ylim=(-1.05, 1.05))
    for ax in (left, right):
        _plain_numbers(ax.xaxis)
        _legend(ax, 8)
    left.set_title(title, loc="left", fontsize=11)
    return save(figure, path)


def roofline(
    points: Sequence[tuple[str, float, float]],
    *,
    limits: Mapping[str, float],
    dense: float,
    path: str | Path | None = None,
    ax: Panels = None,
) -> Figure:
    """Multiplications per second that events stand for, against the share of neurons that fire.

    Parameters
    ----------
    points : sequence of (label, share, events per second and thread)
    limits : mapping of str to float
        Most synaptic events per second and thread, by the size of the weights.
    dense : float
        Multiply-adds per second and thread of a dense matrix product.
    """
    figure, (ax,) = new_figure(width=6.4, height=4.0, ax=ax)
    shares = np.array([p[1] for p in points])
    span = np.geomspace(min(0.01, 0.7 * shares.min()), 1.0, 50)
    for shade, (size, rate) in zip((1.0, 0.6, 0.35), limits.items(), strict=False):
        ax.loglog(span, rate / span / 1e9, color=TEST, alpha=shade, linewidth=1, label=f"events, weights of {size}")
    ax.axhline(dense / 1e9, color=ACCENT, linewidth=1, label="dense matrix product")
    for (label, share, rate), marker in zip(points, "os^Dv<>PX*" * len(points), strict=False):
        ax.loglog([share], [rate / share / 1e9], marker, color=MUTED, markersize=6, label=label)
    ax.set(xlabel="spikes per neuron and step", ylabel="10⁹ dense multiply-adds per second and thread")
    _legend(ax, 7)
    ax.set_title("Event-driven rollouts, counted as dense products", loc="left", fontsize=11)
    return save(figure, path)
