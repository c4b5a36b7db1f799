"""The implicit gradient against differences of the exact equilibrium.

Two ways to take the difference. ``central`` solves (FP) anew for every perturbed parameter and asks that no
neuron changes its piece of σ. ``cell`` stays inside the linear cell: the pieces are held, so (FP) is a linear
system, the loss a smooth function without kinks, and the difference as exact as its rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import solvers
from ide_ref.equilibrium import Equilibrium, Linearisation, find_equilibrium, gather_sources, spread_sources
from ide_ref.implicit import Backward, backward
from ide_ref.network import Frozen, Network, Params, freeze
from ide_ref.training.losses import cross_entropy

Method = Literal["central", "cell"]

FLOOR = 1e-3
"""Errors are relative to the larger of the two values, and at least to this part of the parameter's largest
coordinate, or of its norm for a direction."""

RESOLUTION = 1e-5
"""... and at least to this part of the largest of all: a bias under batch normalisation has gradient 0, and
differences of a loss near 1 resolve no less."""

# Offsets and weights of each difference, in units of h and 1/h.
_FOURTH = ((-2.0, 1 / 12), (-1.0, -8 / 12), (1.0, 8 / 12), (2.0, -1 / 12))
_EIGHTH = (4 / 5, -1 / 5, 4 / 105, -1 / 280)  # of L(θ + k h) − L(θ − k h), k = 1..4
_RIGHT = ((0.0, -25 / 12), (1.0, 48 / 12), (2.0, -36 / 12), (3.0, 16 / 12), (4.0, -3 / 12))
_LEFT = tuple((-offset, -weight) for offset, weight in _RIGHT)
_SWEPT = tuple(float(h) for h in np.logspace(-0.5, -8, 16))
_SECOND = ((-1.0, -1 / 2), (1.0, 1 / 2))

_STEP = {"central": 1e-2, "cell": 0.5}


@dataclass(frozen=True)
class GradientRow:
    """One parameter's check, by coordinates or by directions.

    Attributes
    ----------
    parameter : str
        ``"(all)"`` for directions through all parameters together.
    kind : {"coordinates", "directions"}
    size : int
        Scalars in the parameter.
    checked, set_aside : int
        Differences compared, and those where every step crossed a kink of σ.
    one_sided : int
        Those among the compared that were taken from one side.
    max_rel_error : float
        Largest relative error among those compared; NaN when none was.
    worst : tuple of int
        Index of the coordinate it was found at, or (number,) of the direction.
    largest : float
        Largest absolute gradient in the parameter.
    """

    parameter: str
    kind: Literal["coordinates", "directions"]
    size: int
    checked: int
    set_aside: int
    one_sided: int
    max_rel_error: float
    worst: tuple[int, ...]
    largest: float


@dataclass(frozen=True)
class Kink:
    """The neuron closest to a kink of σ, at the equilibrium.

    Attributes
    ----------
    distance : float
        Of its pre-activation p to 0 or V_th, whichever is closer, in units of potential.
    sample : int
    population : str
    neuron : tuple of int
        Index in the population's shape.
    """

    distance: float
    sample: int
    population: str
    neuron: tuple[int, ...]


@dataclass(frozen=True)
class GradientReport:
    """Result of :func:`check_gradient`.

    Attributes
    ----------
    rows : tuple of GradientRow
    method : {"central", "cell"}
    tol : float
    loss : float
    beta_residual : float
        Largest relative residual of (BETA).
    certificate : float
        Largest certified error of β, (CERT); infinite where γ ≥ 1.
    equilibrium_residual, equilibrium_certificate : float
        Largest ‖f(a) − a‖ of the equilibrium differentiated, and its certified distance to a*.
    contraction : float
        γ of (COND).
    kink : Kink
        The nearest.
    """

    rows: tuple[GradientRow, ...]
    method: Method
    tol: float
    loss: float
    beta_residual: float
    certificate: float
    equilibrium_residual: float
    equilibrium_certificate: float
    contraction: float
    kink: Kink

    @property
    def checked(self) -> int:
        """Differences compared."""
        return sum(row.checked for row in self.rows)

    @property
    def set_aside(self) -> int:
        """Differences set aside because a kink lay between."""
        return sum(row.set_aside for row in self.rows)

    @property
    def set_aside_fraction(self) -> float:
        """Part of all differences that was set aside."""
        return self.set_aside / max(1, self.checked + self.set_aside)

    @property
    def max_rel_error(self) -> float:
        """Largest relative error over all parameters."""
        return _largest(self.rows)

    @property
    def max_direction_error(self) -> float:
        """The same over directions alone; NaN where none was compared."""
        return _largest([row for row in self.rows if row.kind == "directions"])

    @property
    def passed(self) -> bool:
        """Whether something was compared and every error is at most ``tol``."""
        return self.checked > 0 and bool(self.max_rel_error <= self.tol)

    def table(self) -> str:
        """The report as text."""
        width = max(len("parameter"), *(len(r.parameter) for r in self.rows))
        lines = [f"{'parameter':<{width}}  {'size':>8}  {'along':<11}  checked  set aside  largest |g|  max rel. error"]
        for row in self.rows:
            flag = "" if not row.checked or row.max_rel_error <= self.tol else f"  <- at {row.worst}"
            lines.append(
                f"{row.parameter:<{width}}  {row.size:>8}  {row.kind:<11}  {row.checked:>7}  {row.set_aside:>9}  "
                f"{row.largest:>11.3e}  {row.max_rel_error:>14.2e}{flag}"
            )
        sided = sum(row.one_sided for row in self.rows)
        lines.append(
            f"{self.checked} differences checked by method {self.method!r} ({sided} one-sided), "
            f"{self.set_aside} set aside for kinks ({100 * self.set_aside_fraction:.1f} %); largest relative error "
            f"{self.max_rel_error:.2e}, tolerance {self.tol:.0e}: {'passed' if self.passed else 'FAILED'}"
        )
        lines.append(
            f"loss {self.loss:.6f}; gamma {self.contraction:.4f}; residual of (BETA) {self.beta_residual:.1e}, "
            f"certified error of beta {self.certificate:.1e}; residual of the equilibrium "
            f"{self.equilibrium_residual:.1e}, certified error {self.equilibrium_certificate:.1e}"
        )
        kink = self.kink
        lines.append(
            f"nearest kink {kink.distance:.1e} away in potential: sample {kink.sample}, {kink.population}, "
            f"neuron {kink.neuron}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "passed": self.passed,
            "method": self.method,
            "tol": self.tol,
            "max_rel_error": self.max_rel_error,
            "max_direction_error": self.max_direction_error,
            "checked": self.checked,
            "set_aside": self.set_aside,
            "set_aside_fraction": self.set_aside_fraction,
            "loss": self.loss,
            "contraction": self.contraction,
            "beta_residual": self.beta_residual,
            "certificate": self.certificate,
            "equilibrium_residual": self.equilibrium_residual,
            "equilibrium_certificate": self.equilibrium_certificate,
            "nearest_kink": {**asdict(self.kink), "neuron": list(self.kink.neuron)},
            "parameters": [{**asdict(row), "worst": list(row.worst)} for row in self.rows],
        }


@dataclass(frozen=True)
class StepSweep:
    """Relative error of a directional difference as the step h varies: the V-shaped curve.

    Attributes
    ----------
    steps : (K,) array
        Step lengths, in units of the parameters' scale.
    errors : dict of str to (K,) array
        Of ``"second order"``, ``"fourth order"`` (both of the exact equilibrium) and ``"linear cell"``.
        Left of the V rounding rules, right of it the difference's own order, or a kink.
    crossed : dict of str to (K,) bool array
        Where a perturbation moved a neuron onto another piece of σ.
    kink : Kink
    """

    steps: NDArray
    errors: dict[str, NDArray]
    crossed: dict[str, NDArray[np.bool_]]
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
        return {
            "steps": self.steps.tolist(),
            "errors": {name: e.tolist() for name, e in self.errors.items()},
            "crossed": {name: c.tolist() for name, c in self.crossed.items()},
            "nearest_kink": {**asdict(self.kink), "neuron": list(self.kink.neuron)},
        }


def _largest(rows: Sequence[GradientRow]) -> float:
    errors = [row.max_rel_error for row in rows if row.checked]
    # Not max(): a NaN among the errors must come out.
    return float(np.max(errors)) if errors else float("nan")


def solve_cell(frozen: Frozen, base: Equilibrium, x: NDArray) -> Equilibrium:
    """(FP) with every neuron held on the piece of σ it has in ``base``: a linear system.

    Where no neuron would leave its piece this is the equilibrium itself; elsewhere its smooth continuation.

    Parameters
    ----------
    frozen : Frozen
        Perhaps with other parameters than ``base``.
    base : Equilibrium
        Gives the pieces, and where to begin.
    x : (B, *input_shape) or (B, T, *input_shape) array
    """
    net = frozen.network
    v_th = net.neuron.v_th
    slope = (base.pieces == 0) / v_th
    above = (base.pieces > 0).astype(slope.dtype)
    x_mean = frozen.mean_input(frozen.check_input(x))
    drive = frozen.drive(x_mean)

    def sweep(z: NDArray) -> tuple[NDArray, NDArray]:
        given = spread_sources(net, z)
        a, p = np.empty_like(drive), drive.copy()
        for target in range(len(net.populations)):
            place = net.place(target)
            for c, (source, end) in zip(frozen.connections, net.ends, strict=True):
                if end == target and source >= 0:
                    p[:, place] += c.at((a if source < target else given)[:, net.place(source)])[0]
            a[:, place] = slope[:, place] * p[:, place] + above[:, place]
        return a, p

    jacobian = Linearisation(frozen, frozen.connections, slope, base.a, base.a)
    z = gather_sources(net, base.a)
    # Each pass solves for what is left, so that the last one's rounding is all that remains.
    for _ in range(3):
        r = gather_sources(net, sweep(z)[0]) - z
        if not r.any():
            break
        z = z + solvers.solve("gmres", jacobian.jvp, r, tol=1e-8, max_iter=400).x
    a, p = sweep(z)
    residual = solvers.norms(gather_sources(net, a) - z)
    converged = bool(np.all(residual <= 1e-12 * (1.0 + solvers.norms(z))))
    if not converged:
        raise solvers.NotConverged(
            f"linear cell: residual {float(np.max(residual)):.2e} left, expected 1e-12; the system is close to singular"
        )
    return Equilibrium(net, a, p, x_mean, residual, 3, converged, frozen)


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

    def solve(self, params: Params, start: NDArray | None = None) -> Equilibrium:
        # Solved below the tolerance that 1e-13 asks for: the last bits are what differences see.
        state = find_equilibrium(
            self.freeze(params), self.x, tol=1e-15, start=start, allow_unconverged=True, max_iter=400
        )
        if np.all(state.residual <= 1e-13 * (1.0 + solvers.norms(state.a))):
            return state
        return find_equilibrium(state.frozen, self.x, tol=1e-13, start=state.a, max_iter=20_000)

    def loss(self, state: Equilibrium) -> tuple[float, NDArray]:
        return cross_entropy(state.frozen.read_out(state), self.y)

    def fine_loss(self, state: Equilibrium) -> np.longdouble:
        """The loss in extended precision, so that a difference sees the logits' rounding alone."""
        logits = state.frozen.read_out(state).astype(np.longdouble)
        shifted = logits - logits.max(axis=1, keepdims=True)
        rows = np.arange(shifted.shape[0])
        return np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, self.y])

    def along(self, base: Equilibrium, direction: Mapping[str, NDArray], h: float, method: Method) -> tuple[Any, bool]:
        """Loss at θ + h·direction, and whether a kink lies between: of σ, unless held, or of α's clamp."""
        moved = {**self.theta, **{name: self.theta[name] + h * d for name, d in direction.items()}}
        clamped = any(
            c.restriction is not None and abs(moved[f"{c.name}.alpha"]) > c.restriction.c
            for c in self.network.connections
        )
        if method == "cell":
            return self.fine_loss(solve_cell(self.freeze(moved), base, self.x)), clamped
        state = self.solve(moved, base.a)
        return self.fine_loss(state), clamped or not np.array_equal(state.pieces, base.pieces)

    def difference(
        self, base: Equilibrium, direction: Mapping[str, NDArray], h: float, method: Method, one_sided: bool
    ) -> tuple[float, bool] | None:
        """Derivative along a direction, and whether it is one-sided; None where every step crosses a kink."""
        if method == "cell":
            return self._cell_difference(base, direction, h)
        for _ in range(4):
            for stencil in (_FOURTH, _RIGHT, _LEFT) if one_sided else (_FOURTH,):
                total = np.longdouble(0)
                for offset, weight in stencil:
                    loss, crossed = self.along(base, direction, offset * h, "central")
                    if crossed:
                        break
                    total += weight * loss
                else:
                    return float(total / h), stencil is not _FOURTH
            h /= 4.0
        return None

    def _cell_difference(
        self, base: Equilibrium, direction: Mapping[str, NDArray], h: float
    ) -> tuple[float, bool] | None:
        """Eighth-order difference in the linear cell, at the step where sixth and eighth order agree best.

        The loss is analytic there, so a long step serves rounding; how long, the parameters decide: ‖W̄‖ of
        (NORM) bends sharply where two singular values are close.
        """
        best: tuple[float, float] | None = None
        for _ in range(6):
            jumps = []
            for k in (1.0, 2.0, 3.0, 4.0):
                (high, out_high), (low, out_low) = (self.along(base, direction, s * k * h, "cell") for s in (1, -1))
                if out_high or out_low:
                    break
                jumps.append((high - low) / h)
            else:
                sixth = 3 / 4 * jumps[0] - 3 / 20 * jumps[1] + 1 / 60 * jumps[2]
                eighth = sum(w * jump for w, jump in zip(_EIGHTH, jumps, strict=True))
                gap = float(abs(eighth - sixth))
                if best is None or gap < best[0]:
                    best = (gap, float(eighth))
                # 1e-15 / h is what rounding leaves of a loss near 1.
                if gap <= max(1e-10 * float(abs(eighth)), 2e-16 / h):
                    break
            h /= 3.0
        return None if best is None else (best[1], False)


def _problem(
    network: Network, params: Mapping[str, ArrayLike], x: ArrayLike, y: ArrayLike, training: bool, seed: int
) -> _Problem:
    theta: Params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    network.check_params(theta)
    return _Problem(network, theta, network.check_input(np.asarray(x), np.float64), np.asarray(y), training, seed)


def nearest_kink(state: Equilibrium) -> Kink:
    """The neuron whose pre-activation is closest to 0 or V_th at an equilibrium.

    Neurons that dropout has cut off are left out: they sit at 0, and nothing moves them.
    """
    net = state.network
    distance = np.minimum(np.abs(state.p), np.abs(state.p - net.neuron.v_th))
    if any(c.keep is not None for c in state.frozen.connections):
        distance = np.where(state.p == 0, np.inf, distance)
    sample, cell = np.unravel_index(int(np.argmin(distance)), distance.shape)
    index = int(np.searchsorted(net.starts, cell, side="right")) - 1
    population = net.populations[index]
    # Cells are channels last, (rows, columns, channels); the index is told as (channel, row, column).
    shape = (*population.shape[1:], population.shape[0]) if len(population.shape) == 3 else population.shape
    where = np.unravel_index(int(cell - net.starts[index]), shape)
    neuron = (where[-1], *where[:-1]) if len(shape) == 3 else where
    return Kink(float(distance[sample, cell]), int(sample), population.name, tuple(int(i) for i in neuron))


def _draw(rng: np.random.Generator, theta: Params, names: Sequence[str]) -> dict[str, NDArray]:
    """A direction of length 1 through some parameters, each moved in proportion to its scale."""
    drawn = {name: rng.standard_normal(theta[name].shape) * _scale(theta[name]) for name in names}
    length = np.sqrt(sum(float(np.vdot(d, d)) for d in drawn.values()))
    return {name: d / length for name, d in drawn.items()}


def _scale(value: NDArray) -> float:
    return max(0.1, float(np.sqrt(np.mean(np.square(value)))))


def _dot(u: Mapping[str, NDArray], v: Mapping[str, NDArray]) -> float:
    return sum(float(np.vdot(d, v[name])) for name, d in u.items())


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
) -> GradientReport:
    """Compare the implicit gradient with differences of the exact equilibrium.

    The loss is that of a*(θ), solved for each perturbed θ, with batch statistics recomputed and dropout masks
    held. With ``central`` the differences are of fourth order, from θ ± h and θ ± 2h; when one of the four
    moves a neuron onto another piece of σ, h is divided by 4, three times at most; then the difference is set
    aside. With ``cell`` every neuron stays on its piece, (FP) is a linear system, and the differences are of eighth
    order: no kinks of σ, and errors near rounding. The two agree up to what ``set_aside`` counts.

    Parameters
    ----------
    network : Network
    params : mapping of str to array
        Converted to float64.
    x, y : arrays
        A small batch: (B, *input_shape) or (B, T, *input_shape), and (B,) labels.
    method : {"central", "cell"}
    n_coordinates : int
        Coordinates drawn a parameter (all, where it has fewer); 0 for none.
    n_directions : int
        Random directions a parameter, and as many through all parameters together; 0 for none.
    seed : int
        Of the draws and of the dropout masks.
    step : float, optional
        First h of a coordinate, in units of the larger of 0.1 and its size; a quarter of it is that of a
        direction, which has length 1. 0.01 for ``central``, 0.5 for ``cell``.
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

    Returns
    -------
    GradientReport

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
    problem = _problem(network, params, x, y, training, seed)
    theta = problem.theta
    state = problem.solve(theta)
    loss, d_logits = problem.loss(state)
    ours: Backward = backward(state.frozen, state, d_logits, solver=solver, tol=1e-12, max_iter=2000)
    found: dict[str, NDArray] = {}
    for name in network.trainable:
        shape = theta[name].shape
        if gradients is not None and name not in gradients:
            raise ValueError(f"gradients has nothing for {name!r}; expected an array of shape {shape}")
        found[name] = np.asarray((ours.gradients if gradients is None else gradients)[name], np.float64)
        if found[name].shape != shape:
            raise ValueError(f"gradient of {name!r} has shape {found[name].shape}; expected {shape}")
    overall = max(float(np.max(np.abs(value))) for value in found.values())
    first = _STEP[method] if step is None else step
    rng = np.random.default_rng(seed)
    rows = []
    for name in network.trainable:
        size, largest = found[name].size, float(np.max(np.abs(found[name])))
        floor = max(FLOOR * largest, RESOLUTION * overall)
        tasks = []
        for flat in sorted(rng.choice(size, min(n_coordinates, size), replace=False)):
            where = tuple(int(i) for i in np.unravel_index(flat, theta[name].shape))
            unit = np.zeros_like(theta[name])
            unit[where] = 1.0
            tasks.append(_Task(where, {name: unit}, first * max(0.1, abs(float(theta[name][where]))), floor))
        if tasks:
            rows.append(_check(problem, state, found, name, "coordinates", tasks, method, one_sided))
        rows += _directions(problem, state, found, name, (name,), n_directions, first, overall, rng, method, one_sided)
    rows += _directions(
        problem,
        state,
        found,
        "(all)",
        network.trainable,
        n_directions,
        first,
        overall,
        rng,
        method,
        one_sided,
    )
    return GradientReport(
        tuple(rows),
        method,
        tol,
        loss,
        float(np.max(ours.solution.relative)),
        float(np.max(ours.certificate)),
        float(np.max(state.residual)),
        float(np.max(state.certificate)),
        ours.contraction,
        nearest_kink(state),
    )


class _Task(NamedTuple):
    """One difference to take: its name in the report, the direction, h, and the least scale of the error."""

    where: tuple[int, ...]
    direction: dict[str, NDArray]
    h: float
    floor: float


def _directions(
    problem: _Problem,
    state: Equilibrium,
    found: Params,
    label: str,
    names: Sequence[str],
    n_directions: int,
    step: float,
    overall: float,
    rng: np.random.Generator,
    method: Method,
    one_sided: bool,
) -> list[GradientRow]:
    """The row of random directions through the named parameters; none where none is asked for."""
    if not n_directions:
        return []
    norm = np.sqrt(sum(float(np.vdot(found[name], found[name])) for name in names))
    tasks = []
    for k in range(n_directions):
        direction = _draw(rng, problem.theta, names)
        # A direction's derivatives of higher order are larger than a coordinate's; a quarter of its step.
        tasks.append(_Task((k,), direction, step / 4, max(FLOOR * float(norm), RESOLUTION * overall)))
    return [_check(problem, state, found, label, "directions", tasks, method, one_sided)]


def _check(
    problem: _Problem,
    state: Equilibrium,
    found: Params,
    label: str,
    kind: Literal["coordinates", "directions"],
    tasks: Sequence[_Task],
    method: Method,
    one_sided: bool,
) -> GradientRow:
    checked, sided = 0, 0
    worst: tuple[int, ...] = ()
    worst_error = float("nan")
    for task in tasks:
        result = problem.difference(state, task.direction, task.h, method, one_sided)
        if result is None:
            continue
        checked += 1
        sided += result[1]
        value = _dot(task.direction, found)
        error = abs(value - result[0]) / max(abs(value), abs(result[0]), task.floor)
        if not error <= worst_error:
            worst, worst_error = task.where, error
    names = found if label == "(all)" else (label,)
    size = sum(found[name].size for name in names)
    largest = max(float(np.max(np.abs(found[name]))) for name in names)
    return GradientRow(label, kind, size, checked, len(tasks) - checked, sided, worst_error, worst, largest)


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

    Parameters
    ----------
    network, params, x, y, seed, training
        As in :func:`check_gradient`.
    parameter : str, optional
        The direction's parameter; all of them by default.
    steps : sequence of float
        Lengths of the perturbation along a direction of unit length.

    Raises
    ------
    ValueError
        For an unknown parameter.
    """
    if parameter is not None and parameter not in network.trainable:
        raise ValueError(f"parameter is {parameter!r}; expected one of {', '.join(network.trainable)}")
    problem = _problem(network, params, x, y, training, seed)
    state = problem.solve(problem.theta)
    _, d_logits = problem.loss(state)
    ours = backward(state.frozen, state, d_logits, solver="gmres", tol=1e-12, max_iter=2000).gradients
    names = network.trainable if parameter is None else (parameter,)
    direction = _draw(np.random.default_rng(seed), problem.theta, names)
    value = _dot(direction, ours)
    eighth = tuple((s * k, s * w) for k, w in zip((1, 2, 3, 4), _EIGHTH, strict=True) for s in (1.0, -1.0))
    stencils: dict[str, tuple[tuple[tuple[float, float], ...], Method]] = {
        "second order": (_SECOND, "central"),
        "fourth order": (_FOURTH, "central"),
        "linear cell": (eighth, "cell"),
    }
    errors = {name: np.empty(len(steps)) for name in stencils}
    crossed = {name: np.zeros(len(steps), bool) for name in stencils}
    for i, h in enumerate(steps):
        for name, (stencil, method) in stencils.items():
            losses = [problem.along(state, direction, offset * h, method) for offset, _ in stencil]
            estimate = sum(s[1] * loss[0] for s, loss in zip(stencil, losses, strict=True)) / h
            errors[name][i] = abs(estimate - value) / max(abs(value), abs(estimate))
            crossed[name][i] = any(out for _, out in losses)
    return StepSweep(np.asarray(steps, float), errors, crossed, nearest_kink(state))
