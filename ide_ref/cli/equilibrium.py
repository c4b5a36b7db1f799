"""``ide-ref equilibrium``: the rates' distance from the equilibrium over time, beside what the theorems promise."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ide_ref.cli import _common

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ide_ref.network import Params
    from ide_ref.presets import Preset

_RECORDED = 2**26  # numbers kept of a run, two per neuron and step

_STATISTICS = 64  # images whose statistics normalise a freshly drawn network


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("network", metavar="PRESET|CHECKPOINT", help="a preset, a checkpoint or a training's folder")
    p.add_argument("--n-steps", dest="asked", type=_common.count, metavar="T", help="time steps (default: up to 1000)")
    p.add_argument("--samples", type=_common.count, default=4, metavar="N", help="images (default 4)")
    p.add_argument("--norm", choices=("operator", "kernel"), default="operator", help="norm of the restriction")
    p.add_argument("--out", metavar="DIR", help="output folder (default: runs/NAME-equilibrium)")
    p.add_argument("--seed", type=_common.seed, default=0)
    p.set_defaults(neuron="lif", profile="paper", n_steps=None)


def run(args: argparse.Namespace) -> int:
    import matplotlib  # noqa: F401  what is missing is told before the run

    from ide_ref import figures
    from ide_ref._files import write_atomically
    from ide_ref.maps import freeze
    from ide_ref.neurons import IF, LIF
    from ide_ref.simulation import simulate
    from ide_ref.solvers import NotConverged
    from ide_ref.theory import conditions, error_bound, fixed_point_residual
    from ide_ref.training.evaluation import load_batch, load_data

    preset, params, fresh = _network(args)
    n_images = max(args.samples, _STATISTICS if fresh else 0)
    data = load_data(preset, data_dir=args.data_dir, source=args.data, limit=n_images)
    images, _ = load_batch(preset, data, "test", range(min(n_images, len(data.y_test))))
    if fresh:
        params = _with_statistics(preset, params, images)
    x = images[: args.samples]
    out = Path(args.out or f"runs/{preset.name}-equilibrium")
    out.mkdir(parents=True, exist_ok=True)
    v_th = preset.neuron.v_th
    leaky = preset.neuron if preset.neuron.leak < 1 else LIF(v_th=v_th)
    n_steps = preset.recipe.n_steps
    if preset.recipe.input != "spikes":
        # As long as what is recorded fits, but not below the preset's own.
        fitting = _RECORDED // (len(x) * preset.network.state_size)
        n_steps = args.asked or max(n_steps, min(1000, fitting))
    found = conditions(freeze(preset.network, params))
    panels = []
    for neuron in (IF(v_th), leaky):
        network = replace(preset, neuron=neuron).network
        # (ERR) is of one leak: populations with a neuron of their own take it too, and keep their V_th.
        own = tuple(replace(p, neuron=p.neuron and replace(p.neuron, leak=neuron.leak)) for p in network.populations)
        frozen = freeze(replace(network, populations=own), params)
        _common.tell(f"{neuron.name.upper()}: {n_steps} steps of {len(x)} samples")
        rates = simulate(frozen, x, n_steps, record=True)
        try:
            panels.append(figures.panel(error_bound(frozen, x, rates, known=found), name=neuron.name.upper()))
        except NotConverged as error:
            # How far the rates are from solving (FP) is told without a*.
            times = figures.times_drawn(n_steps)
            observed = {"residual": fixed_point_residual(frozen, x, rates, times), "firing_rates": rates.mean_spikes}
            panels.append({"name": neuron.name.upper(), "times": times, **observed, "problem": str(error)})
    title = f"{preset.name}, {'freshly drawn' if fresh else 'trained'}"
    sharper = ", but a sharper condition holds" if found.applies and found.paper >= 1 else ""
    told = "the theorems apply" if found.applies else "the theorems do not apply, this is what was observed"
    verdict = f"(COND) {found.paper:.3g}{sharper}: {told}"
    missing = [p["name"] for p in panels if p["problem"]]
    if missing:
        verdict += f"; no a* was found for {' and '.join(missing)}"
    paths = [out / f"equilibrium.{suffix}" for suffix in ("png", "svg")]
    figures.convergence(panels, title=f"{title}\n{verdict}", paths=paths)
    document = {
        "network": args.network,
        "structure": preset.structure,
        "fresh": fresh,
        "samples": len(x),
        "n_steps": n_steps,
        "conditions": {
            "paper": found.paper,
            "block": found.block,
            "elementwise": found.elementwise,
            "stacked": found.stacked.value,
            "stacked_error": found.stacked.error,
            "norms": {norm.name: [norm.value, norm.error] for norm in found.norms},
            "applies": found.applies,
        },
        "neurons": panels,
    }
    write_atomically(out / "equilibrium.json", _common.as_json(document).encode())
    _common.print_result(args, document, _table(title, found.describe(), panels, n_steps, out))
    return 0


def _network(args: argparse.Namespace) -> tuple[Preset, Params, bool]:
    """Preset, float64 parameters, and whether they are freshly drawn."""
    import numpy as np

    from ide_ref import presets

    fresh = args.network in presets.names()
    preset, params = _common.load_network(args, args.network)
    if preset.recipe.input == "spikes" and args.asked is not None:
        preset = replace(preset, recipe=replace(preset.recipe, n_steps=args.asked))
    preset = replace(preset, dropout=0.0, recipe=replace(preset.recipe, dtype="float64"))
    return preset, {name: np.asarray(value, np.float64) for name, value in params.items()}, fresh


def _with_statistics(preset: Preset, params: Params, images: NDArray) -> Params:
    """A drawn network has no running statistics yet: its input connections take those of some images."""
    from ide_ref.maps import freeze

    params = dict(params)
    for m in freeze(preset.network, params, images, training=True).maps:
        if m.norm is not None and m.norm.from_batch:
            params[f"{m.name}.running_mean"] = m.norm.mean
            params[f"{m.name}.running_var"] = m.norm.variance
    return params


def _table(title: str, verdict: str, panels: list[dict[str, Any]], n_steps: int, out: Path) -> str:
    import numpy as np

    lines = [title, verdict]
    known = [p for p in panels if not p["problem"]]
    if known:
        lines += ["", "neuron  ‖a[T]−a*‖      (ERR)        sum      limit  slope  error/bound  sup |u⁺|"]
    for p in known:
        limit = "      none" if p["limit"] is None else f"{p['limit'][-1]:10.3e}"
        last = " ".join(f"{np.median(p[name][:, -1]):10.3e}" for name in ("error", "one_step", "iterated"))
        slope = f"{p['slope']:6.2f}" if np.isfinite(p["slope"]) else "  none"
        lines.append(f"{p['name']:<6}  {last:>33} {limit} {slope} {p['tightness']:12.3f} {p['u_plus_sup']:9.2f}")
    for p in panels:
        if p["problem"]:
            middle = np.median(p["residual"], axis=0)
            rates = ", ".join(f"{name} {rate:.4f}" for name, rate in p["firing_rates"].items())
            lines += [
                "",
                f"{p['name']}: no a* was found ({p['problem']}). Observed: ‖f(a[t])−a[t]‖ went from {middle[0]:.3e} at "
                f"t = 1 to {middle[-1]:.3e} at t = {n_steps}; spikes per neuron and step: {rates}",
            ]
    if known:
        lines += ["", "population  mean a*   silent  every step"]
        for name, p in known[0]["populations"].items():
            lines.append(f"{name:<10} {p['mean_rate']:8.4f} {p['silent']:8.1%} {p['saturated']:11.1%}")
    lines += ["", f"T = {n_steps}; written: {out}/{{equilibrium.png, equilibrium.svg, equilibrium.json}}"]
    return "\n".join(lines)
