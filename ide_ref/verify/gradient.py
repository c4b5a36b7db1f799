"""The implicit gradient against differences of the exact equilibrium.

Two ways to evaluate the loss. ``central`` solves (FP) anew for every perturbed parameter and asks that no
neuron changes its piece of σ. ``cell`` stays inside the linear region: the pieces are held, so (FP) is a linear
system and the loss a smooth function without kinks.

Inside a cell the loss is analytic but not linear: ‖W̄‖ of (NORM) bends where two singular values are close,
batch statistics bend where a variance is small. Differences at h, h/2, h/4, ... are therefore extrapolated to h = 0,
and what the last orders differ by is the uncertainty of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import solvers
from ide_ref._files import finite
from ide_ref.authors import PAPER, edited
from ide_ref.equilibrium import Equilibrium, Linearisation, find_equilibrium, gather_sources, spread_sources
from ide_ref.implicit import Backward, backward
from ide_ref.maps import Frozen, freeze
from ide_ref.network import Network, Params, of_population
from ide_ref.training.losses import cross_entropy

Method = Literal["central", "cell"]

FLOOR = 1e-3
"""Errors are relative to the larger of the two values, and at least to this part of the parameter's largest
coordinate, or of its norm for a direction."""

RESOLUTION = 1e-5
"""... and at least to this part of the largest of all: a bias under batch normalisation has gradient 0, and
differences of a loss near 1 resolve no less."""

ZERO = 100.0
"""Roundings of the largest gradient below which another is none."""

AGREE = 1e-2
"""Limits with and without the longest step that differ by more, relative, are two orders' chance agreement."""

_STEP = {"central": 2e-2, "cell": 2.0}
_LEVELS = {"central": 10, "cell": 17}
_ORDER_LEVELS = 12
_ALIGNED = 0.9
# Two per decade, read from decimals: a power's last bit differs between machines.
_SWEPT = tuple(float(f"{lead}e-{place}") for place in range(1, 9) for lead in ("3.1622776601683795", "1"))


@dataclass(frozen=True)
class GradientRow:
    """One parameter's check, by coordinates or by directions."""

    parameter: str
    """``"(all)"`` for directions through all parameters together."""
    kind: Literal["coordinates", "directions"]
    size: int
    """Scalars in the parameter."""
    checked: int
    """Differences compared."""
    set_aside: int
    """Those where every step crossed a kink of σ or ‖W̄‖."""
    unresolved: int
    """Those less certain than the tolerance asks, but in agreement within their uncertainty."""
    one_sided: int
    """Those among the compared that were taken from one side."""
    max_rel_error: float
    """Largest relative error among those compared; NaN when none was."""
    uncertainty: float
    """Largest uncertainty of a difference among those compared, relative as the error is."""
    worst: tuple[int, ...]
    """Index of the coordinate it was found at, or (number,) of the direction."""
    largest: float
    """Largest absolute gradient in the parameter."""
    zero: int = 0
    """Differences zero to rounding, as the gradient is; counted neither as checked nor as unresolved."""


@dataclass(frozen=True)
class Kink:
    """The neuron closest to a kink of σ, at the equilibrium."""

    distance: float
    """Of its pre-activation p to 0 or V_th, whichever is closer, in units of potential."""
    sample: int
    population: str
    neuron: tuple[int, ...]
    """Index in the population's shape."""


@dataclass(frozen=True)
class GradientReport:
    """Result of :func:`check_gradient`."""

    rows: tuple[GradientRow, ...]
    method: Method
    tol: float
    loss: float
    beta_residual: float
    """Largest relative residual of (BETA)."""
    certificate: float
    """Largest certified error of β, (CERT); infinite where γ ≥ 1."""
    equilibrium_residual: float
    """Largest ‖f(a) − a‖ of the equilibrium differentiated."""
    equilibrium_certificate: float
    """Its largest certified distance to a*."""
    contraction: float
    """γ of (COND)."""
    kink: Kink
    why_not: str = ""
    """Why no error is certified; empty where one is."""
    orders: tuple[float, float] = (float("nan"), float("nan"))
    """Observed orders of the Taylor remainders without and with the gradient, through all parameters: 1.00 and 2.00 for
    a right one, 1.00 and 1.00 for another. The least of the directions drawn; NaN where none stands above rounding."""

    @property
    def checked(self) -> int:
        """Differences compared."""
        return sum(row.checked for row in self.rows)

    @property
    def set_aside(self) -> int:
        """Differences set aside because a kink lay between."""
        return sum(row.set_aside for row in self.rows)

    @property
    def unresolved(self) -> int:
        """Differences less certain than the tolerance."""
        return sum(row.unresolved for row in self.rows)

    @property
    def zero(self) -> int:
        """Differences zero to rounding where the gradient is so too."""
        return sum(row.zero for row in self.rows)

    @property
    def set_aside_fraction(self) -> float:
        """Part of all differences that was set aside."""
        return self.set_aside / max(1, self.checked + self.set_aside + self.unresolved + self.zero)

    @property
    def max_rel_error(self) -> float:
        """Largest relative error over all parameters."""
        return _largest([row.max_rel_error for row in self.rows if row.checked])

    @property
    def max_direction_error(self) -> float:
        """The same over directions alone; NaN where none was compared."""
        return _largest([row.max_rel_error for row in self.rows if row.checked and row.kind == "directions"])

    @property
    def uncertainty(self) -> float:
        """Largest relative uncertainty of a difference compared."""
        return _largest([row.uncertainty for row in self.rows if row.checked])

    @property
    def passed(self) -> bool:
        """Whether something was compared and every error is at most ``tol``."""
        return self.checked > 0 and bool(self.max_rel_error <= self.tol)

    def table(self) -> str:
        """The report as text."""
        width = max(len("parameter"), *(len(r.parameter) for r in self.rows))
        lines = [
            f"{'parameter':<{width}}  {'size':>8}  {'along':<11}  checked  set aside  unresolved  largest |g|  "
            "max rel. error  uncertainty"
        ]
        for row in self.rows:
            flag = "" if not row.checked or row.max_rel_error <= self.tol else f"  <- at {row.worst}"
            flag += f"  {row.zero} zero to rounding" * (row.zero > 0)
            counts = f"{row.checked:>7}  {row.set_aside:>9}  {row.unresolved:>10}"
            errors = f"{row.largest:>11.3e}  {row.max_rel_error:>14.2e}  {row.uncertainty:>11.1e}{flag}"
            lines.append(f"{row.parameter:<{width}}  {row.size:>8}  {row.kind:<11}  {counts}  {errors}")
        sided = sum(row.one_sided for row in self.rows)
        lines.append(
            f"{self.checked} differences checked by method {self.method!r} ({sided} one-sided), "
            f"{self.set_aside} set aside for kinks ({100 * self.set_aside_fraction:.1f} %)"
        )
        lines.append(
            f"largest relative error {self.max_rel_error:.2e}, tolerance {self.tol:.0e}: "
            f"{'passed' if self.passed else 'FAILED'}"
        )
        if np.isfinite(self.orders[1]):
            lines.append(
                f"orders of the Taylor remainders without the gradient {self.orders[0]:.2f}, with it "
                f"{self.orders[1]:.2f} (1.00 and 2.00 when it is right)"
            )
        if self.zero:
            lines.append(f"{self.zero} zero to rounding, the gradient and the difference both: not compared")
        if self.unresolved:
            lines.append(
                f"{self.unresolved} unresolved: rounding, or a loss that bends sharply (singular values or samples "
                "that almost coincide),\n  leaves them less certain than the tolerance; within that they agree"
            )
        lines.append(
            f"loss {self.loss:.6f}; gamma {self.contraction:.4f}; residual of (BETA) {self.beta_residual:.1e}, "
            f"certified error of beta {self.certificate:.1e}\n"
            f"residual of the equilibrium {self.equilibrium_residual:.1e}, "
            f"certified error {self.equilibrium_certificate:.1e}"
        )
        if self.why_not:
            lines.append(f"no error is certified: {self.why_not}")
        where = f"sample {self.kink.sample}, {self.kink.population}, neuron {self.kink.neuron}"
        lines.append(f"nearest kink {self.kink.distance:.1e} away in potential: {where}")
        return "\n".join(lines)

    __str__ = table

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"GradientReport({verdict}, {self.checked} differences, worst relative error {self.max_rel_error:.1e})"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        own = asdict(self)
        renamed = {"why_not_certified": "why_not", "nearest_kink": "kink", "parameters": "rows"}
        told = {name: own.pop(field) for name, field in renamed.items()}
        found = ("passed", "checked", "set_aside", "set_aside_fraction", "unresolved", "zero")
        errors = ("max_rel_error", "max_direction_error", "uncertainty")
        return finite({**{name: getattr(self, name) for name in (*found, *errors)}, **told, **own})


@dataclass(frozen=True)
class StepSweep:
    """Relative error of a directional difference as the step h varies: the V-shaped curve."""

    steps: NDArray
    """(K,) step lengths along a direction of length 1; of an extrapolated difference the longest."""
    errors: dict[str, NDArray]
    """(K,) of ``"second order"``, ``"fourth order"`` (both of the exact equilibrium) and ``"linear region"`` (eighth).
    Left of the V rounding rules, right of it the difference's own order, or a kink."""
    crossed: dict[str, NDArray[np.bool_]]
    """(K,) of each: where a perturbation moved a neuron onto another piece of σ, or crossed a kink of (NORM)."""
    kink: Kink

    def table(self) -> str:
        """The curves as text; a star where a kink was crossed."""
        lines = ["step      " + "  ".join(f"{name:>14}" for name in self.errors)]
        for i, step in enumerate(self.steps):
            cells = (f"{e[i]:>13.2e}{'*' if self.crossed[name][i] else ' '}" for name, e in self.errors.items())
            lines.append(f"{step:<10.1e}" + "  ".join(cells))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The curves as JSON-ready values."""
        own = asdict(self)
        return finite({"nearest_kink": own.pop("kink"), **own})


def _largest(errors: Sequence[float]) -> float:
    # Not max(): a NaN among the errors must come out.
    return float(np.max(errors)) if errors else float("nan")


def extrapolate(quotients: Sequence[tuple[Any, float]], *, order: Literal[1, 2]) -> tuple[float, float]:
    """Limit at h = 0 of difference quotients at h, h/2, h/4, ..., by Richardson's extrapolation, and its uncertainty.

    Each stands with its noise, what rounding left of it. The limit is the entry of the tableau that differs least from
    the two that it was made of, and uncertain by that and the noise; infinitely for a single quotient. The error is a
    series in h for one-sided quotients (order 1), in h² for central ones (2).
    """
    best = (float(quotients[0][0]), float("inf"))
    row: list[Any] = []
    for difference, noise in quotients:
        before, row = row, _refine(row, difference, order=order)
        for m in range(1, len(row)):
            gap = float(max(abs(row[m] - row[m - 1]), abs(row[m] - before[m - 1])) + noise)
            if gap < best[1]:
                best = (float(row[m]), gap)
    return best


def _refine(before: Sequence[Any], difference: Any, *, order: int) -> list[Any]:
    """The next row of Richardson's tableau, from the row before and the quotient at half its step."""
    row = [difference]
    for m, coarse in enumerate(before, 1):
        row.append(row[-1] + (row[-1] - coarse) / (2 ** (order * m) - 1))
    return row


def observed_order(steps: Sequence[float], remainders: Sequence[float], noise: Sequence[float]) -> float:
    """Observed order of remainders that stand well above rounding, at the shortest such steps; NaN for fewer than 3."""
    clear = [(h, r) for h, r, n in zip(steps, remainders, noise, strict=True) if r > 30 * n and r > 0][-4:]
    if len(clear) < 3:
        return float("nan")
    logs = np.log([list(pair) for pair in clear])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def solve_region(frozen: Frozen, base: Equilibrium, x: NDArray) -> Equilibrium:
    """(FP) with every neuron held on the piece of σ it has in ``base``: a linear system.

    Where no neuron would leave its piece this is the equilibrium itself; elsewhere its smooth continuation. ``frozen``
    may have other parameters than ``base``, which gives the pieces, and where to begin; x, (B, *input_shape), is as
    for :func:`freeze`.

    Raises solvers.NotConverged where the linear system has no solution.
    """
    net = frozen.network
    v_th = net.thresholds()
    slope = (base.branch == 0) / v_th
    above = (base.branch > 0).astype(slope.dtype)
    x_mean = frozen.mean_input(frozen.check_input(x))
    drive = frozen.drive(x_mean)

    def sweep(z: NDArray) -> tuple[NDArray, NDArray]:
        given = spread_sources(net, z)
        a, p = np.empty_like(drive), drive.copy()
        for target in range(len(net.populations)):
            columns = net.slice_of(target)
            for i, source in net.into(target):
                if source >= 0:
                    frozen.maps[i].apply_at((a if source < target else given)[:, net.slice_of(source)], p[:, columns])
            a[:, columns] = slope[:, columns] * p[:, columns] + above[:, columns]
        return a, p

    jacobian = Linearisation(frozen, frozen.maps, slope, base.a, base.a)
    z = gather_sources(net, base.a)
    # Each pass solves for what is left, so that the last one's rounding is all that remains.
    for _ in range(3):
        r = gather_sources(net, sweep(z)[0]) - z
        if not r.any():
            break
        z = z + solvers.solve("gmres", jacobian.jvp, r, tol=1e-8, max_iter=400).x
    a, p = sweep(z)
    residual = solvers.norms(gather_sources(net, a) - z)
    if not np.all(residual <= 1e-12 * (1.0 + solvers.norms(z))):
        left = f"residual {float(np.max(residual)):.2e} left, expected 1e-12"
        raise solvers.NotConverged(f"linear region: {left}; the system is nearly singular")
    return Equilibrium(net, a, p, x_mean, residual, 3, "converged", frozen)


class _Point(NamedTuple):
    """The loss at perturbed parameters.

    ``crossed``: a kink lies between, of σ (unless held) or of α's clamp. ``turned``: another singular value of a W̄
    has come close to the first. Steps shorter than their gap see ‖W̄‖ smooth, longer ones see |h|: there differences
    of all orders agree on a wrong value. On one side or the other the leading vector turns by 45° or more.
    """

    loss: Any
    crossed: bool
    turned: bool


@dataclass(frozen=True)
class _Problem:
    """The loss as a function of the parameters, everything random held fixed."""

    network: Network
    theta: Params
    x: NDArray
    y: NDArray
    training: bool
    seed: int

    def freeze(self, params: Params) -> Frozen:
        rng = np.random.default_rng(self.seed)
        return freeze(self.network, params, self.x, training=self.training, rng=rng)

    def solve(self, frozen: Frozen, start: NDArray | None = None) -> Equilibrium:
        # Solved below the tolerance that 1e-13 asks for: the last bits are what differences see.
        state = find_equilibrium(frozen, self.x, tol=1e-15, start=start, allow_unconverged=True, max_iter=400)
        if np.all(state.residual <= 1e-13 * (1.0 + solvers.norms(state.a))):
            return state
        return find_equilibrium(state.frozen, self.x, tol=1e-13, start=state.a, max_iter=20_000)

    def differentiated(self, solver: str) -> tuple[float, Equilibrium, Backward]:
        """The loss at θ, the equilibrium and the implicit gradient there."""
        state = self.solve(self.freeze(self.theta))
        loss, d_logits = cross_entropy(state.frozen.read_out(state), self.y)
        return loss, state, backward(state.frozen, state, d_logits, solver=solver, tol=1e-12, max_iter=2000)

    def fine_loss(self, state: Equilibrium) -> np.longdouble:
        """The loss in extended precision, so that a difference sees the logits' rounding alone."""
        logits = state.frozen.read_out(state).astype(np.longdouble)
        chosen = logits[np.arange(len(logits)), self.y, None]
        return np.mean(np.logaddexp.reduce(logits - chosen, axis=1))

    def along(self, base: Equilibrium, direction: Mapping[str, NDArray], h: float, method: Method) -> _Point:
        """The loss at θ + h·direction, and what lies between."""
        moved = {**self.theta, **{name: self.theta[name] + h * d for name, d in direction.items()}}
        frozen = self.freeze(moved)
        clamped = turned = False
        pairs = (base.frozen.pullbacks, frozen.pullbacks)
        for c, here, there in zip(self.network.connections, *pairs, strict=True):
            if c.restriction is not None and here.singular is not None and there.singular is not None:
                clamped |= abs(float(moved[f"{c.name}.alpha"])) > c.restriction.c
                turned |= abs(float(here.singular.right @ there.singular.right)) < _ALIGNED
        if method == "cell":
            try:
                return _Point(self.fine_loss(solve_region(frozen, base, self.x)), clamped, turned)
            except solvers.NotConverged:
                # So far out the continuation of the cell has a pole: as good as a kink.
                return _Point(np.longdouble(np.nan), True, turned)
        state = self.solve(frozen, base.a)
        return _Point(self.fine_loss(state), clamped or not np.array_equal(state.branch, base.branch), turned)

    def rounding(self, base: Equilibrium, method: Method) -> float:
        """Rounding of the loss, as second differences show it whose steps are too short for anything else."""
        rng, here, h = np.random.default_rng(self.seed), self.fine_loss(base), 1e-10
        found = []
        for _ in range(4):
            direction = _draw(rng, self.theta, self.network.trainable)
            right, left = (self.along(base, direction, s * h, method).loss for s in (1, -1))
            found.append(float(right - 2 * here + left) ** 2 / 6)
        return float(np.sqrt(np.mean(found)))


class _Task(NamedTuple):
    """One difference to take: its name in the report, the direction, the longest h, the error's least scale."""

    where: tuple[int, ...]
    direction: dict[str, NDArray]
    h: float
    floor: float


class _Difference(NamedTuple):
    """A derivative by differences."""

    value: float
    uncertainty: float
    one_sided: bool


@dataclass(frozen=True)
class _Check:
    """What all rows of one report share."""

    problem: _Problem
    state: Equilibrium
    found: Params
    method: Method
    one_sided: bool
    tol: float
    rounding: float
    """Of the loss."""

    def difference(self, task: _Task) -> _Difference | None:
        """Derivative along a direction; None where every step crosses a kink.

        The step is halved until the extrapolation is a hundred times as certain as ``tol`` asks, or as certain as
        ``rounding`` lets it be; a kink met on the way starts it anew with the smaller steps.
        """
        h, here = task.h, self.problem.fine_loss(self.state)
        runs: dict[str, list[tuple[Any, float]]] = {side: [] for side in ("both", "right", "left")}
        best: _Difference | None = None
        for _ in range(_LEVELS[self.method]):
            right, left = (self.problem.along(self.state, task.direction, s * h, self.method) for s in (1, -1))
            turned, noise = right.turned or left.turned, self.rounding / h
            for side, quotient, out in (
                ("both", (right.loss - left.loss) / (2 * h), turned or right.crossed or left.crossed),
                ("right", (right.loss - here) / h, turned or right.crossed),
                ("left", (here - left.loss) / h, turned or left.crossed),
            ):
                run = runs[side]
                if out:
                    run.clear()
                    continue
                run.append((quotient, noise))
                if len(run) < 2 or (side != "both" and not self.one_sided):
                    continue
                order: Literal[1, 2] = 2 if side == "both" else 1
                value, uncertainty = extrapolate(run, order=order)
                if len(run) > 2:
                    # Two orders can agree by chance: without the longest step the limit must be the same.
                    again, _ = extrapolate(run[1:], order=order)
                    if abs(again - value) > AGREE * max(abs(value), abs(again), task.floor) + 8 * noise:
                        del run[0]
                        best = None
                        continue
                if best is None or uncertainty < best.uncertainty:
                    best = _Difference(value, uncertainty, side != "both")
                if len(run) > 2 and uncertainty <= max(1e-2 * self.tol * max(abs(value), task.floor), 3 * noise):
                    return best
            h /= 2
        return best

    def orders(self, task: _Task) -> tuple[float, float]:
        """Observed orders of the remainders |L(θ + h d) − L(θ)| and |L(θ + h d) − L(θ) − h ⟨g, d⟩|."""
        value, here = dot(task.direction, self.found), self.problem.fine_loss(self.state)
        steps, first, second = [], [], []
        for k in range(_ORDER_LEVELS):
            h = task.h / 4**k
            point = self.problem.along(self.state, task.direction, h, self.method)
            if not (point.crossed or point.turned):
                steps.append(h)
                first.append(float(abs(point.loss - here)))
                second.append(float(abs(point.loss - here - h * value)))
        noise = [self.rounding] * len(steps)
        return observed_order(steps, first, noise), observed_order(steps, second, noise)

    def row(self, label: str, kind: Literal["coordinates", "directions"], tasks: Sequence[_Task]) -> GradientRow:
        """Take some differences and judge them."""
        set_aside = unresolved = zero = 0
        overall = float(np.sqrt(dot(self.found, self.found)))
        compared: list[tuple[float, float, bool, tuple[int, ...]]] = []
        for task in tasks:
            result = self.difference(task)
            for longer in (8, 64):
                if result is None or result.uncertainty <= self.tol * max(abs(result.value), task.floor):
                    break
                # Too uncertain: perhaps for rounding alone, and then a longer step will do.
                again = self.difference(task._replace(h=longer * task.h))
                result = result if again is None or again.uncertainty > result.uncertainty else again
            if result is None:
                set_aside += 1
                continue
            value = dot(task.direction, self.found)
            scale = max(abs(value), abs(result.value), task.floor)
            error, doubt = abs(value - result.value) / scale, result.uncertainty / scale
            if doubt > self.tol and error <= 10 * doubt:
                if abs(value) <= ZERO * np.finfo(float).eps * overall and result.uncertainty <= RESOLUTION * overall:
                    zero += 1
                else:
                    unresolved += 1
            else:
                compared.append((error, doubt, result.one_sided, task.where))
        errors, doubts, sided, places = zip(*compared, strict=True) if compared else ((np.nan,), (np.nan,), (), ((),))
        worst = int(np.argmax(errors))  # a NaN before all others
        names = self.found if label == "(all)" else (label,)
        size = sum(self.found[name].size for name in names)
        largest = max(float(np.max(np.abs(self.found[name]))) for name in names)
        counts = len(compared), set_aside, unresolved, sum(sided)
        told = float(errors[worst]), float(np.fmax.reduce(doubts)), places[worst], largest
        return GradientRow(label, kind, size, *counts, *told, zero)


def _problem(
    network: Network, params: Mapping[str, ArrayLike], x: ArrayLike, y: ArrayLike, training: bool, seed: int
) -> _Problem:
    # Under a profile the gradient is that of no loss.
    network = edited(network, PAPER)
    theta: Params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    network.check_params(theta)
    problem = _Problem(network, theta, network.check_input(np.asarray(x), np.float64), np.asarray(y), training, seed)
    # Every search for ‖W̄‖ begins where the first one ended, and is over at once where W̄ has not moved.
    return replace(problem, theta={**theta, **problem.freeze(theta).statistics})


def _free(network: Network, theta: Params) -> tuple[str, ...]:
    """Trainable parameters that can move both ways: all but an α that has arrived at its clamp.

    Training ends there as a rule. A direction that moved it along with all others would be beyond a kink at every step.
    """
    limits = {f"{c.name}.alpha": c.restriction.c for c in network.connections if c.restriction is not None}
    return tuple(n for n in network.trainable if n not in limits or abs(float(theta[n])) < limits[n])


def nearest_kink(state: Equilibrium) -> Kink:
    """The neuron whose pre-activation is closest to 0 or V_th at an equilibrium.

    Neurons that dropout has cut off are left out: they sit at 0, and nothing moves them.
    """
    net = state.network
    distance = np.minimum(np.abs(state.p), np.abs(state.p - net.thresholds(state.p.dtype)))
    if any(c.keep is not None for c in state.frozen.maps):
        distance = np.where(state.p == 0, np.inf, distance)
    found = []
    for population in net.populations:
        own = of_population(net, distance, population.name)
        sample, *neuron = (int(i) for i in np.unravel_index(int(np.argmin(own)), own.shape))
        found.append(Kink(float(np.min(own)), sample, population.name, tuple(neuron)))
    return min(found, key=lambda kink: kink.distance)


def _draw(rng: np.random.Generator, theta: Params, names: Sequence[str]) -> dict[str, NDArray]:
    """A direction of length 1 through some parameters, each moved in proportion to its scale."""
    scales = {name: max(0.1, float(np.sqrt(np.mean(np.square(theta[name]))))) for name in names}
    drawn = {name: rng.standard_normal(theta[name].shape) * scale for name, scale in scales.items()}
    length = np.sqrt(dot(drawn, drawn))
    return {name: d / length for name, d in drawn.items()}


def dot(u: Mapping[str, NDArray], v: Mapping[str, NDArray]) -> float:
    """Inner product over the parameters of `u`."""
    return sum(float(np.vdot(d, v[name])) for name, d in u.items())


def _in_question(network: Network, theta: Params, gradients: Mapping[str, ArrayLike]) -> dict[str, NDArray]:
    """The gradients to check as float64; ValueError, by name, for one that is missing or misshapen."""
    found = {}
    for name in network.trainable:
        shape = theta[name].shape
        if name not in gradients:
            raise ValueError(f"gradients has nothing for {name!r}; expected an array of shape {shape}")
        found[name] = np.asarray(gradients[name], np.float64)
        if found[name].shape != shape:
            raise ValueError(f"gradient of {name!r} has shape {found[name].shape}; expected {shape}")
    return found


def check_gradient(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    method: Method = "central",
    n_coordinates: int = 12,
    n_directions: int = 2,
    seed: int = 0,
    step: float | None = None,
    tol: float = 1e-7,
    training: bool = True,
    one_sided: bool = False,
    solver: str = "gmres",
    gradients: Mapping[str, ArrayLike] | None = None,
    log: TextIO | None = None,
) -> GradientReport:
    """Compare the implicit gradient with differences of the exact equilibrium.

    The loss is that of a*(θ), solved for each perturbed θ, with batch statistics recomputed and dropout masks
    held. Differences at θ ± h, θ ± h/2, ... are extrapolated to h = 0 until they are certain to a hundredth of
    ``tol`` or to rounding. With ``central`` a step that moves a neuron onto another piece of σ is not used, nor any
    longer one; where no two steps are left, the difference is set aside. With ``cell`` every neuron stays on its
    piece: no kinks of σ, long steps, and errors near rounding. The two agree up to what ``set_aside`` counts. A step
    beyond which another singular value of W̄, (NORM), leads counts as a kink with either.

    A difference fails when it is off by more than ``tol`` and ten times its own uncertainty; one that is less
    certain than ``tol`` and does not fail is counted as unresolved, or as zero where it and the gradient
    are zero to rounding.

    Parameters
    ----------
    params : mapping of str to array
        Converted to float64.
    x, y : arrays
        A small batch: (B, *input_shape) or (B, T, *input_shape), and (B,) labels.
    n_coordinates : int
        Coordinates drawn per parameter (all, where it has fewer).
    n_directions : int
        Random directions per parameter, and as many through all parameters together, but an α at its clamp.
    seed : int
        Of the draws and of the dropout masks.
    step : float, optional
        Longest h of a coordinate, in units of the larger of 0.1 and its size; a quarter of it is that of a
        direction, which has length 1. 0.02 for ``central``, 2 for ``cell``.
    tol : float
        Largest relative error that passes.
    training : bool
        With batch statistics and dropout, as in training; otherwise with running statistics.
    one_sided : bool
        Where a kink lies on one side, difference on the other before taking a smaller step.
    solver : str
        For (BETA).
    gradients : mapping of str to array, optional
        Check these instead of our own.
    log : file, optional
        Where to tell how far it has come, a line a parameter.

    Raises
    ------
    ValueError
        For inputs that do not fit the network, or an unknown method.
    NotConverged
        When the equilibrium or (BETA) cannot be solved.
    """
    if method not in _STEP:
        raise ValueError(f"method is {method!r}; expected 'central' or 'cell'")
    if n_coordinates < 0 or n_directions < 0:
        raise ValueError(f"n_coordinates is {n_coordinates}, n_directions {n_directions}; expected 0 or more")
    if n_coordinates == n_directions == 0:
        raise ValueError("n_coordinates and n_directions are both 0; expected something to check")
    first = _STEP[method] if step is None else step
    for argument, value in (("step", first), ("tol", tol)):
        if not 0 < value < np.inf:
            raise ValueError(f"{argument} is {value!r}; expected a positive number")
    problem = _problem(network, params, x, y, training, seed)
    theta = problem.theta
    loss, state, ours = problem.differentiated(solver)
    found = _in_question(network, theta, ours.gradients if gradients is None else gradients)
    overall = max(float(np.max(np.abs(value))) for value in found.values())
    check = _Check(problem, state, found, method, one_sided, tol, problem.rounding(state, method))
    rng = np.random.default_rng(seed)

    def directions(names: Sequence[str]) -> list[_Task]:
        """Random directions through the named parameters together."""
        part = {name: found[name] for name in names}
        floor = max(FLOOR * np.sqrt(dot(part, part)), RESOLUTION * overall)
        # A direction's derivatives of higher order are larger than a coordinate's; a quarter of its step.
        return [_Task((k,), _draw(rng, theta, names), first / 4, floor) for k in range(n_directions)]

    rows = []
    for k, name in enumerate(network.trainable, 1):
        if log is not None:
            log.write(f"{name}, {k} of {len(network.trainable)}\n")
            log.flush()
        size, largest = found[name].size, float(np.max(np.abs(found[name])))
        floor = max(FLOOR * largest, RESOLUTION * overall)
        tasks = []
        for flat in sorted(rng.choice(size, min(n_coordinates, size), replace=False)):
            where = tuple(int(i) for i in np.unravel_index(flat, theta[name].shape))
            unit = np.zeros_like(theta[name])
            unit[where] = 1.0
            tasks.append(_Task(where, {name: unit}, first * max(0.1, abs(float(theta[name][where]))), floor))
        rows.append(check.row(name, "coordinates", tasks))
        rows.append(check.row(name, "directions", directions([name])))
    together = directions(_free(network, theta))
    rows.append(check.row("(all)", "directions", together))
    each = np.array([check.orders(task) for task in together] or [(np.nan, np.nan)])
    orders = float(np.fmin.reduce(each[:, 0])), float(np.fmin.reduce(each[:, 1]))
    of_beta = float(np.max(ours.solution.relative)), float(np.max(ours.certificate))
    of_state = float(np.max(state.residual)), float(np.max(state.certificate)), ours.contraction
    told = tuple(row for row in rows if row.checked + row.set_aside + row.unresolved + row.zero)
    return GradientReport(told, method, tol, loss, *of_beta, *of_state, nearest_kink(state), ours.why_not, orders)


def sweep_steps(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    parameter: str | None = None,
    steps: Sequence[float] = _SWEPT,
    seed: int = 0,
    training: bool = True,
) -> StepSweep:
    """Error of directional differences over the step: the V-shaped curve.

    Arguments are as in :func:`check_gradient`, and:

    Parameters
    ----------
    parameter : str, optional
        The direction's parameter; by default all of them, but an α at its clamp. ValueError for an unknown one.
    steps : sequence of float
        Lengths of the perturbation along a direction of unit length.
    """
    if parameter is not None and parameter not in network.trainable:
        raise ValueError(f"parameter is {parameter!r}; expected one of {', '.join(network.trainable)}")
    problem = _problem(network, params, x, y, training, seed)
    _, state, ours = problem.differentiated("gmres")
    names = _free(network, problem.theta) if parameter is None else (parameter,)
    direction = _draw(np.random.default_rng(seed), problem.theta, names)
    value = dot(direction, ours.gradients)
    curves: dict[str, tuple[int, Method]] = {
        "second order": (1, "central"),
        "fourth order": (2, "central"),
        "linear region": (4, "cell"),
    }
    errors = {name: np.empty(len(steps)) for name in curves}
    crossed = {name: np.zeros(len(steps), bool) for name in curves}
    for i, longest in enumerate(steps):
        for name, (levels, method) in curves.items():
            row: list[Any] = []
            for k in range(levels):
                h = longest / 2**k
                right, left = (problem.along(state, direction, s * h, method) for s in (1, -1))
                crossed[name][i] |= right.crossed or left.crossed or right.turned or left.turned
                row = _refine(row, (right.loss - left.loss) / (2 * h), order=2)
            errors[name][i] = abs(row[-1] - value) / max(abs(value), abs(row[-1]))
    return StepSweep(np.asarray(steps, float), errors, crossed, nearest_kink(state))
