"""Running a port in process; the package's fast functions are one like any other.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref.equilibrium import linearise
from ide_ref.implicit import backward
from ide_ref.maps import freeze
from ide_ref.network import INPUT, of_population
from ide_ref.simulation import simulate
from ide_ref.synapses import to_channels_last
from ide_ref.training.losses import cross_entropy
from ide_ref.training.sgd import SGD
from ide_ref.verify.conformance.compare import OUTPUTS, CaseResult, ConformanceReport, Divergence, check
from ide_ref.verify.conformance.make import cases, chosen
from ide_ref.verify.conformance.pack import Case, load, network_of


def taken(directory: str | Path | None, names: Iterable[str] | None) -> tuple[Case, ...]:
    """The cases of a pack, or made on the spot, of some names or all.

    Raises
    ------
    ValueError
        For a pack that cannot be read, or a name that is no case's.
    """
    if directory is None:
        return tuple(cases(names))
    pack = {case.name: case for case in load(directory)}
    wanted = chosen(pack, names)
    return tuple(case for name, case in pack.items() if name in wanted)


def run_port(
    port: Callable[[Case], Mapping[str, Any]],
    *,
    directory: str | Path | None = None,
    names: Iterable[str] | None = None,
    stages: Sequence[str] | None = None,
) -> ConformanceReport:
    """Run a port on every case, in process, and compare; what it raises is reported as that case's divergence.

    Parameters
    ----------
    port : callable
        From a case to its outputs, ``<stage>/<name>`` to array.
    directory : path, optional
        A pack; by default the cases are made on the spot.
    names : iterable of str, optional
        Only these cases.
    stages : sequence of str, optional
        Compare these alone.
    """
    found = taken(directory, names)
    results = []
    for case in found:
        if case.lacking:
            results.append(CaseResult(case.name, None, (), False, declined=case.lacking))
            continue
        try:
            outputs = port(case)
            if not isinstance(outputs, Mapping):
                raise TypeError(f"it returned a {type(outputs).__name__}; expected {OUTPUTS}")
        except Exception as error:
            detail = f"the port raised {type(error).__name__}: {error}"
            results.append(CaseResult(case.name, Divergence(case.name, "port", "", "error", detail=detail), (), False))
        else:
            results.append(check(case, outputs, stages=stages))
    return ConformanceReport(tuple(results), groups={case.name: case.group for case in found})


def reference(case: Case) -> dict[str, NDArray]:
    """The package's fast functions as a port: every stage of a case from its inputs and parameters."""
    net = network_of(case.config)
    params = net.init(np.random.default_rng(0), dtype=case.x.dtype) | case.params
    frozen = freeze(net, params, case.x, training=True, rng=np.random.default_rng(0))
    # The case's dropout masks in place of drawn ones.
    masks = {name: to_channels_last(keep, keep.shape[1:]) for name, keep in case.keep.items()}
    frozen = replace(frozen, maps=tuple(replace(m, keep=masks.get(m.name)) for m in frozen.maps))
    rates = simulate(frozen, case.x, case.config["n_steps"], record=True)
    drive, logits = frozen.drive(rates.x_mean), frozen.read_out(rates)
    _, d_logits = cross_entropy(logits, case.y)
    back = backward(frozen, rates, d_logits, solver="gmres", tol=case.config["solver_tol"], max_iter=2000)
    g, _ = frozen.read_out_pull_back(rates, d_logits)
    mask = linearise(frozen, rates.a, drive).slope != 0
    sgd = case.config["sgd"]
    optimiser = SGD(sgd["momentum"], sgd["weight_decay"])
    updated, _ = optimiser.step(params, optimiser.start(params, net.trainable), back.gradients, rate=sgd["rate"])
    updated = net.project({**updated, **back.statistics})

    found = {"x_mean": rates.x_mean, "logits": logits, "d_logits": d_logits}
    for c, m in zip(net.connections, frozen.maps, strict=True):
        if c.restriction is not None:
            found[f"weight/{c.name}"] = m.weight
    driven = {c.target for c in net.connections if c.source == INPUT}
    for p in net.populations:
        states = {"u": rates.u, "rates": rates.a, "mask": mask.astype(np.uint8), "g": g, "beta": back.beta}
        if p.name in driven:
            states["drive"] = drive
        found |= {f"{stage}/{p.name}": of_population(net, state, p.name) for stage, state in states.items()}
        if rates.recording is not None:
            found[f"spikes/{p.name}"] = rates.recording.spikes(p.name)
    found |= {f"grad/{name}": np.asarray(v) for name, v in back.gradients.items()}
    return found | {f"new/{name}": v for name, v in updated.items() if not name.endswith("singular_vector")}
