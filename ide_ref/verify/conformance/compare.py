"""Judging a port's outputs: stage by stage, up to the first wrong number.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

import difflib
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref._files import finite
from ide_ref.verify.arrays import as_array, dtype_name
from ide_ref.verify.conformance import pack as _pack
from ide_ref.verify.conformance.pack import (
    DISCRETE,
    GROUPS,
    RTOL,
    STAGES,
    VERSION,
    Case,
    PackError,
    errors,
    load,
    stage_of,
)

OUTPUTS = "a mapping of '<stage>/<name>' to arrays"
"""What a port gives for a case, in words."""


@dataclass(frozen=True)
class Divergence:
    """The first wrong number of a case, or what kept it from being compared."""

    case: str
    stage: str
    """Empty where the case itself is unknown."""
    array: str
    """The population, connection or parameter; empty for stages with a single array."""
    kind: str
    """``value``, ``missing``, ``shape``, ``dtype``, ``not finite``, ``error`` or ``unknown``."""
    step: int | None = None
    """1 to T, for spikes."""
    index: tuple[int, ...] = ()
    """(sample, neuron...) in the array, without the step."""
    expected: float = float("nan")
    got: float = float("nan")
    error: float = float("nan")
    allowed: float = float("nan")
    detail: str = ""
    precision: str = ""
    """The lower precision whose rounding makes an error of this size; empty where the case's own does or none."""

    @property
    def rounding(self) -> bool | None:
        """Whether rounding can explain it; None where that is no question."""
        return self.error < self.allowed if self.kind == "value" else None

    @property
    def where(self) -> str:
        """Case, stage and array in words."""
        return f"case {self.case}" + f", stage {self.stage}" * bool(self.stage) + f", {self.array}" * bool(self.array)

    def __str__(self) -> str:
        where = self.where
        if self.kind != "value":
            return f"{where}: {self.detail}"
        if self.step is not None:
            where += f", step {self.step}"
        if self.index:
            of_weights = self.stage in ("weight", "grad", "new")
            where += f", index {self.index}" if of_weights else f", sample {self.index[0]}, neuron {self.index[1:]}"
        # At V_th exactly both are zero, and the detail says it.
        size = f" (error {self.error:.1e}, allowed {self.allowed:.1e})" * (self.error > 0)
        judged = f"rounding {'can' if self.rounding else 'cannot'} explain it"
        judged += f", unless something is computed in {self.precision}" * bool(self.precision)
        return f"{where}: expected {self.expected:.9g}, got {self.got:.9g}{size}: {judged}; {self.detail}"


@dataclass(frozen=True)
class CaseResult:
    """How one case went."""

    case: str
    divergence: Divergence | None
    compared: tuple[str, ...]
    """Stages that agree."""
    complete: bool
    """Whether the port's output reaches the last stage."""
    reading: str = ""
    """The reading by which an acceptable case agrees, where it is not the standard's own."""
    declined: str = ""
    """Why the port, or this machine, left the case out; it is not counted against the port."""

    @property
    def passed(self) -> bool:
        """Whether all that is there agrees, and something is there."""
        return self.divergence is None and bool(self.compared)


_INDENT = " " * len("FAILED  ")


def _and_more(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _rank(stage: str) -> int:
    """Place of a stage in their order; what is none comes first."""
    return STAGES.index(stage) if stage in STAGES else -1


@dataclass(frozen=True)
class ConformanceReport:
    """Result of :func:`compare` and :func:`run_port`."""

    results: tuple[CaseResult, ...]
    absent: tuple[str, ...] = ()
    """Cases of the pack without any output; they are not counted against the port."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """The group of every case asked for, by name."""

    @property
    def passed(self) -> bool:
        """Whether every case agrees as far as it goes; one that was declined goes nowhere."""
        answered = [result for result in self.results if not result.declined]
        return bool(answered) and all(result.passed for result in answered)

    def whole(self, group: str) -> tuple[int, int]:
        """How many cases of a group agree through every stage, and how many there are."""
        names = {name for name, own in self.groups.items() if own == group}
        return sum(r.passed and r.complete for r in self.results if r.case in names), len(names)

    def coverage(self) -> str:
        """A line a group: the cases that agree, those that do not, and how many reach each stage."""
        lines = []
        for group in GROUPS:
            whole, total = self.whole(group)
            if not total:
                continue
            found = [r for r in self.results if self.groups.get(r.case) == group]
            wrong = sum(not r.passed and not r.declined for r in found)
            agree = sum(r.passed for r in found)
            counts = [sum(stage in r.compared for r in found) for stage in STAGES]
            runs = [
                (count, [stage for _, stage in stages])
                for count, stages in itertools.groupby(zip(counts, STAGES, strict=True), key=lambda pair: pair[0])
            ]
            reached = ", ".join(f"{'-'.join(dict.fromkeys((s[0], s[-1])))} {count}" for count, s in runs)
            read = sum(bool(r.reading) for r in found)
            line = f"{group:<10}  {agree} of {total} cases agree, {whole} whole, {wrong} wrong, "
            line += f"{total - agree - wrong} not answered; stages: {reached}"
            lines.append(line + f"; {read} by a reading of their own" * bool(read))
        return "\n".join(lines)

    def badge(self) -> str:
        """A port's badge, an SVG: how many required cases agree through all stages; red where anything is wrong."""
        whole, total = self.whole("required")
        wrong = sum(not r.passed and not r.declined for r in self.results)
        colour = "#b3261e" if wrong or not whole else "#1a7f37" if whole == total else "#8a6100"
        left, right = f"conformance v{VERSION}", f"{whole} of {total} required" + f", {wrong} wrong" * bool(wrong)
        # Verdana of 11 pixels is about 6.6 wide; textLength makes it exact.
        wide, more = (round(6.6 * len(text)) + 12 for text in (left, right))
        text = '<text x="{}" y="14" textLength="{}">{}</text>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide + more}" height="20" role="img">\n'
            f"<title>{left}: {right}</title>\n"
            f'<rect width="{wide}" height="20" fill="#444"/>\n'
            f'<rect x="{wide}" width="{more}" height="20" fill="{colour}"/>\n'
            '<g fill="#fff" font-family="Verdana,sans-serif" font-size="11">\n'
            f"{text.format(6, wide - 12, left)}\n{text.format(wide + 6, more - 12, right)}\n</g>\n</svg>\n"
        )

    @property
    def first(self) -> Divergence | None:
        """The first divergence: of the earliest stage, in the order of the cases."""
        found = [result.divergence for result in self.results if result.divergence is not None]
        return min(found, key=lambda d: _rank(d.stage)) if found else None

    def table(self) -> str:
        """The report as text."""
        lines = []
        diverged: dict[str, list[Divergence]] = {}
        partial: dict[tuple[str, ...], list[str]] = {}
        declined: dict[str, list[str]] = {}
        for result in self.results:
            d = result.divergence
            if result.declined:
                declined.setdefault(result.declined, []).append(result.case)
            elif d is not None:
                # Those that belong to no stage have each their own text.
                diverged.setdefault(d.stage or d.case, []).append(d)
            elif not result.compared:
                lines.append(f"FAILED  case {result.case}: nothing to compare")
            elif result.reading:
                lines.append(f"agrees  case {result.case}, by the reading {result.reading}")
            elif not result.complete:
                partial.setdefault(result.compared, []).append(result.case)
        for stage, found in sorted(diverged.items(), key=lambda item: _rank(item[0])):
            lines.append(f"FAILED  {found[0]}")
            if len(found) > 1:
                others = ", ".join(d.case for d in found[1:])
                told = f"and {len(found) - 1} more in stage {stage}: {others}"
                lines += textwrap.wrap(
                    told, 118, initial_indent=_INDENT, subsequent_indent=_INDENT + "  ", break_on_hyphens=False
                )
        for stages, names in partial.items():
            lines.append(f"agrees  case {_and_more(names)}, as far as it goes: {', '.join(stages)}")
        lines += [f"left    case {_and_more(names)}: {reason}" for reason, names in declined.items()]
        if diverged:
            lines.append(f"{'stage':<8}  agree  diverge  not reached")
            for stage in STAGES:
                agree, diverge = sum(stage in r.compared for r in self.results), len(diverged.get(stage, ()))
                if agree or diverge:
                    lines.append(f"{stage:<8}  {agree:>5}  {diverge:>7}  {len(self.results) - agree - diverge:>11}")
        good = sum(result.passed for result in self.results)
        whole = sum(result.passed and result.complete for result in self.results)
        lines.append(f"{good} of {len(self.results)} cases agree, {whole} of them through every stage")
        if self.absent:
            lines.append(f"no output of {_and_more(self.absent)}: not compared")
        if self.first is not None:
            lines.append(f"look first at: {self.first.where}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; numbers that are not finite become null."""

        def row(d: Divergence | None) -> dict[str, Any] | None:
            return None if d is None else {**asdict(d), "rounding": d.rounding, "text": str(d)}

        cases = [{**asdict(r), "passed": r.passed, "divergence": row(r.divergence)} for r in self.results]
        groups = {group: dict(zip(("whole", "cases"), self.whole(group), strict=True)) for group in GROUPS}
        counted = {group: counts for group, counts in groups.items() if counts["cases"]}
        about = {"passed": self.passed, "first": row(self.first), "absent": self.absent, "groups": counted}
        return finite({**about, "cases": cases})


def check(case: Case, outputs: Mapping[str, Any], *, stages: Sequence[str] | None = None) -> CaseResult:
    """Compare one case's outputs, stage by stage, up to the first divergence.

    Parameters
    ----------
    outputs : mapping of str to array
        ``<stage>/<name>`` to NumPy arrays, or anything with ``__array__`` or DLPack. Stages after the last that is
        there are not asked for; one that is left out before it is reported.
    stages : sequence of str, optional
        Compare these alone.

    Returns
    -------
    CaseResult
        Of an acceptable case, by the first reading under which all of it agrees; by the standard's own where none does.

    Raises
    ------
    ValueError
        For outputs that are no mapping, or stages that are unknown.
    """
    found = _check(case, outputs, stages)
    for reading in case.config["readings"] if not found.passed else ():
        given = {name: _narrow(value) for name, value in outputs.items()} if reading == "single-precision" else outputs
        other = _check(case.read_as(reading), given, stages)
        if other.passed:
            return replace(other, reading=reading)
    return found


def _narrow(value: Any) -> Any:
    """A float64 array in single precision; what is no array stays, to be refused."""
    return value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value


def _check(case: Case, outputs: Mapping[str, Any], stages: Sequence[str] | None) -> CaseResult:
    wanted = STAGES if stages is None else tuple(stages)
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages has {unknown[0]!r}; expected names of {', '.join(STAGES)}")
    if not isinstance(outputs, Mapping):
        raise ValueError(f"outputs of case {case.name} is a {type(outputs).__name__}; expected {OUTPUTS}")
    own = {stage_of(name) for name in case.expected}
    # A case of full size has few stages, and a port may give all of them.
    few = [str(name) for name in outputs if stage_of(str(name)) in own or stage_of(str(name)) not in STAGES]
    strangers = [name for name in few if name not in case.expected]
    present = {stage_of(name) for name in few}
    last = max((i for i, stage in enumerate(STAGES) if stage in present), default=-1)
    compared: list[str] = []
    divergence = None
    for stage in STAGES[: last + 1]:
        expected = {name: value for name, value in case.expected.items() if stage_of(name) == stage}
        if stage not in wanted or not expected:
            continue
        divergence = _check_stage(case, stage, expected, outputs)
        if divergence is not None:
            if divergence.kind == "missing" and strangers:
                # Most likely the same array under another name.
                more = f"{divergence.detail}; there is {strangers[0]!r}, which is no array of this case"
                divergence = replace(divergence, detail=more)
            break
        compared.append(stage)
    if divergence is None and strangers:
        name = strangers[0]
        detail = f"output {name!r} is no array of this case; expected names such as {next(iter(case.expected))!r}"
        divergence = Divergence(case.name, stage_of(name), "", "missing", detail=detail)
    complete = divergence is None and present == own
    return CaseResult(case.name, divergence, tuple(compared), complete)


def _array(name: str) -> str:
    """The array of ``<stage>/<name>``; empty for stages with a single one."""
    return name.partition("/")[2]


def _check_stage(
    case: Case, stage: str, expected: Mapping[str, NDArray], outputs: Mapping[str, Any]
) -> Divergence | None:
    theirs: dict[str, NDArray] = {}
    for name, right in expected.items():
        found = _readable(case, name, right, outputs)
        if isinstance(found, Divergence):
            return found
        theirs[name] = found
    if stage == "spikes":
        return _first_spike(case, expected, theirs)
    # In the order in which they are computed: populations forward, or backward for β.
    order = [p["name"] for p in case.config["populations"]]
    if stage == "beta":
        order.reverse()
    judged = errors(stage, theirs, expected, RTOL[case.config["dtype"]])
    for name in sorted(expected, key=lambda name: order.index(_array(name)) if _array(name) in order else 0):
        error, allowed = judged[name]
        if np.any(error > allowed):
            return _value(case, name, expected[name], theirs[name], error, allowed)
    return None


def _readable(case: Case, name: str, right: NDArray, outputs: Mapping[str, Any]) -> NDArray | Divergence:
    """An output as an array that can be compared, or why it cannot."""
    refuse = partial(Divergence, case.name, stage_of(name), _array(name))
    if name not in outputs:
        return refuse("missing", detail=f"{name!r} is missing, though later stages or arrays of this stage are there")
    try:
        given = as_array(name, outputs[name])
    except ValueError as error:
        return refuse("dtype", detail=str(error))
    if given.shape != right.shape:
        return refuse("shape", detail=f"{name!r} has shape {given.shape}; expected {right.shape}")
    discrete = stage_of(name) in DISCRETE
    dtype = dtype_name(outputs[name])
    if not discrete and dtype != right.dtype.name:
        return refuse("dtype", detail=f"{name!r} has dtype {dtype}; expected {right.dtype}")
    other = np.argwhere((given != 0) & (given != 1) if discrete else ~np.isfinite(given))
    if len(other):
        where = tuple(int(i) for i in other[0])
        kind = "dtype" if np.isfinite(given[where]) else "not finite"
        told = f"{name!r} holds {given[where]} at {where}"
        return refuse(kind, detail=told + "; expected 0 and 1 alone" * discrete)
    return given


def _first_spike(case: Case, expected: Mapping[str, NDArray], theirs: Mapping[str, NDArray]) -> Divergence | None:
    """The first wrong spike: of the earliest step, there of the first population."""
    wrong = []
    for rank, population in enumerate(p["name"] for p in case.config["populations"]):
        differ = theirs[f"spikes/{population}"] != expected[f"spikes/{population}"]
        wrong += [(place, rank, population) for place in np.argwhere(np.swapaxes(differ, 0, 1))[:1].tolist()]
    if not wrong:
        return None
    (step, sample, *neuron), _, population = min(wrong, key=lambda found: (found[0][0], found[1]))
    at = (sample, step, *neuron)
    right, given = (float(spikes[f"spikes/{population}"][at]) for spikes in (expected, theirs))
    margin = abs(float(case.arrays[f"margin/{population}"][at]))
    # A margin of zero is exact: that neuron's drive is a sum of powers of two.
    allowed = (step + 1) * float(case.config["rounding"][population]) * (margin > 0)
    detail = f"v was {margin:.2e} from V_th, and rounding moves it by at most {allowed:.1e}"
    if margin == 0:
        detail = "v was V_th exactly, whatever the rounding, and at V_th a neuron fires"
    place = step + 1, (sample, *neuron)
    return Divergence(case.name, "spikes", population, "value", *place, right, given, margin, allowed, detail)


_SIZES = {
    "float64": ((1e-5, "single precision"), (1e-4, ""), (4e-3, "half precision")),
    "float32": ((2e-2, "half precision or TF32"),),
}
"""Up to which relative errors look like which precision below each dtype's."""


def _value(case: Case, name: str, right: NDArray, given: NDArray, error: NDArray, allowed: float) -> Divergence:
    """A wrong number: of a mask the first, else the worst: one wrong term touches many and shows where it is large."""
    stage = stage_of(name)
    flat = int(np.argmax(error > allowed)) if stage in DISCRETE else int(np.argmax(error))
    at = tuple(int(i) for i in np.unravel_index(flat, right.shape))
    worst = float(error[at])
    detail = f"{int(np.sum(error > allowed))} of {error.size} numbers are off"
    # A wrong number of a mask, 1, is larger than all of these.
    scale = float(np.max(np.abs(right)))
    sizes = _SIZES[case.config["dtype"]]
    lower = next((precision for most, precision in sizes if worst <= most * scale), "")
    values = float(right[at]), float(given[at]), worst, allowed
    return Divergence(case.name, stage, _array(name), "value", None, at, *values, detail, lower)


def compare(
    directory: str | Path,
    outputs: str | Path | Mapping[str, Mapping[str, Any]],
    *,
    stages: Sequence[str] | None = None,
) -> ConformanceReport:
    """Compare what a port wrote with a pack.

    Parameters
    ----------
    directory : path
        The pack.
    outputs : path, or mapping of case name to mapping of arrays
        A folder with ``<case>.safetensors`` for some or all cases, arrays named ``<stage>/<name>``. One that is called
        like no case at all is reported as a divergence; one of another pack's case is left out.
    stages : sequence of str, optional
        Compare these alone.

    Raises
    ------
    PackError
        For a pack that cannot be read, or a folder without any output of its cases.
    """
    pack = load(directory)
    known = [case.name for case in pack]
    given: Mapping[str, Any]
    if isinstance(outputs, str | Path):
        if not Path(outputs).exists():
            raise PackError(f"there is no folder {outputs}; expected one with files such as {known[0]}.safetensors")
        if Path(outputs).is_file():
            raise PackError(f"{outputs} is a file; expected a folder with files such as {known[0]}.safetensors")
        given = {path.stem: path for path in sorted(Path(outputs).glob("*.safetensors"))}
    else:
        given = outputs
    results = []
    elsewhere = {config["name"] for config in _pack.configs()}
    for name in map(str, given):
        if name not in known and name not in elsewhere:
            near = difflib.get_close_matches(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"expected cases such as {known[0]!r}"
            unknown = Divergence(name, "", "", "unknown", detail=f"no such case; {hint}")
            results.append(CaseResult(name, unknown, (), False))
    for case in pack:
        if case.name in given:
            arrays = given[case.name]
            if isinstance(arrays, Path):
                arrays = _pack.read_arrays(arrays, f"output of case {case.name}")
            results.append(check(case, arrays, stages=stages))
    if not results:
        where = str(outputs) if isinstance(outputs, str | Path) else "outputs"
        raise PackError(f"{where} has no output of any case; expected files such as {known[0]}.safetensors")
    absent = tuple(name for name in known if name not in given)
    return ConformanceReport(tuple(results), absent, {case.name: case.group for case in pack})
