"""A foreign gradient of any fixed point z* = f(z*, x, θ), judged by the remainders of Taylor's theorem.

Let L(θ) = ⟨c, z*(θ)⟩ and g the gradient in question. Along a direction d

    R₁(h) = |L(θ + h d) − L(θ)|               falls like h,
    R₂(h) = |L(θ + h d) − L(θ) − h ⟨g, d⟩|    falls like h² where g is right, like h where it is not,

down to what rounding leaves of L. The same steps, extrapolated to h = 0, give ⟨∇L, d⟩ with an uncertainty, on both
sides of θ: where they differ, a kink lies there. What neither shows is said to be undecidable.

Source: ``docs/check-your-own-layer.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, solvers
from ide_ref._files import finite
from ide_ref.verify.arrays import as_array, dtype_name, grain
from ide_ref.verify.gradient import extrapolate, observed_order

Theta = Mapping[str, NDArray]
Verdict = Literal["right", "wrong", "undecidable"]

LONGEST = 2.0**-4
"""The first step, in parts of a parameter's own size."""

LEVELS = 20
"""Most halvings of it."""

_LEAST = 6  # steps before an extrapolation may be called good enough
# Errors below these parts of the largest derivative and of the terms of L are none: some derivatives are 0.
_IGNORED, _NOTHING = 1e-9, 1e-10
_TOLERANCE = {"64": 1e-5, "32": 1e-4, "16": 2e-2}  # by the bits of a gradient's numbers
_CHUNK, _PATIENCE = 12, 4  # iterations between looks at the residual, and how many looks may find it no smaller
_MOST = 400  # looks
_DENSE = 400  # numbers in z up to which I − ∂f/∂z is taken column by column and inverted


class NoFixedPoint(RuntimeError):
    """f has no fixed point near the start, or none that could be found."""


@dataclass(frozen=True)
class Remainders:
    """One direction: the remainders, and what they say."""

    parameter: str
    """``"(all)"`` for a direction through all parameters together."""
    number: int
    """Of the direction, from 0."""
    given: float
    """⟨g, d⟩ of the gradient in question."""
    found: float
    """⟨∇L, d⟩ by extrapolation."""
    uncertainty: float
    """Of ``found``."""
    error: float
    """|given − found| over ``scale``."""
    scale: float
    """What errors are relative to: the larger of the two, or what a direction of this length has on average."""
    first: float
    """Observed order of R₁; NaN where too little of the curve stands above rounding."""
    second: float
    """The same of R₂."""
    one_sided: bool
    """Whether a kink lies at θ: the derivatives to its two sides differ, and ``given`` is held against either."""
    verdict: Verdict
    steps: tuple[float, ...]
    r1: tuple[float, ...]
    """R₁, the larger of both sides."""
    r2: tuple[float, ...]
    """R₂, the same."""
    noise: tuple[float, ...]
    """What rounding may make of the remainders."""


@dataclass(frozen=True)
class FixedPointReport:
    """Result of :func:`check_fixed_point`."""

    rows: tuple[Remainders, ...]
    tol: float
    """Largest relative error of a right gradient."""
    loss: float
    """L(θ)."""
    residual: float
    """‖f(z) − z‖₂ of the fixed point, after all iterations that made it smaller."""
    rounding: float
    """How much of f(z) may be rounding, from what roundings of z and θ make of it."""
    lipschitz: float
    """Largest ‖f(z + v) − f(z)‖/‖v‖ found by power iteration near it: an estimate, from below, of the constant."""
    certificate: float
    """(residual + rounding)/(1 − lipschitz): a bound on ‖z − z*‖₂ as far as the estimate holds; infinite from 1 on."""
    noise: float
    """What rounding leaves undecided of L: from the certificate; where that is infinite, by solving from elsewhere."""
    dtype: str
    """Of what f returned."""
    n_evaluations: int
    """Of f."""
    start_distance: float
    """‖z − z*‖₂ of the z given and the fixed point found, over ‖z*‖₂ (over 1 where that is 0)."""
    start_resolution: float
    """Up to which a start distance is none: from the certificate (where that is infinite, from the dtype) and the
    rounding of the z given."""

    @property
    def verdict(self) -> Verdict:
        """``"wrong"`` where one direction shows it, ``"right"`` where all do, else ``"undecidable"``."""
        found = {row.verdict for row in self.rows}
        return "wrong" if "wrong" in found else "undecidable" if "undecidable" in found else "right"

    @property
    def orders(self) -> tuple[float, float]:
        """Observed orders of R₁ and R₂: 1.00 and 2.00 for a right gradient, 1.00 and 1.00 for another.

        Medians over the directions that made the verdict; NaN where rounding hides all of them.
        """
        rows = [row for row in self.rows if row.verdict == self.verdict]
        return _median([row.first for row in rows]), _median([row.second for row in rows])

    def table(self) -> str:
        """The report as text."""
        width = max(len("parameter"), *(len(row.parameter) for row in self.rows))
        lines = [f"{'parameter':<{width}}   given         found        uncertainty  rel. error  order  with g  verdict"]
        lines += [
            f"{row.parameter:<{width}}  {row.given:>12.5e}  {row.found:>12.5e}  {row.uncertainty:>10.1e}  "
            f"{row.error:>10.1e}  {row.first:>5.2f}  {row.second:>6.2f}  {row.verdict}"
            f"{', one-sided' if row.one_sided else ''}"
            for row in self.rows
        ]
        if self.dtype != "float64" and any(row.verdict == "undecidable" and not row.one_sided for row in self.rows):
            lines.append(
                f"f computes in {self.dtype}; its rounding hides the remainders: let it compute in float64, uncast"
            )
        first, second = self.orders
        lines += [
            f"{len(self.rows)} directions, tolerance {self.tol:.0e}: {self.verdict}",
            f"orders of the remainders without the gradient {first:.2f}, with it {second:.2f} "
            "(1.00 and 2.00 when it is right)",
            f"fixed point in {self.dtype}: residual {self.residual:.1e}, rounding of f {self.rounding:.1e}; "
            f"rounding of L {self.noise:.1e}; {self.n_evaluations} evaluations of f",
            f"Lipschitz constant of f in z about {self.lipschitz:.3f}, so z is within {self.certificate:.1e} of z*",
        ]
        if self.start_distance > self.start_resolution:
            lines.append(
                f"the z given was {self.start_distance:.1e}, relative, from the fixed point, where it is judged"
            )
        return "\n".join(lines)

    __str__ = table

    def __repr__(self) -> str:
        worst = max(row.error for row in self.rows)
        return f"FixedPointReport({self.verdict}, {len(self.rows)} directions, worst relative error {worst:.1e})"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        first, second = self.orders
        return finite({"verdict": self.verdict, "order_first": first, "order_second": second, **asdict(self)})


def check_fixed_point(
    f: Callable[[Any, Any, Any], Any],
    z: Any,
    theta: Mapping[str, Any],
    x: Any,
    gradient: Mapping[str, Any],
    *,
    cotangent: Any = None,
    loss: Callable[[Any], Any] | None = None,
    n_directions: int = 3,
    tol: float | None = None,
    seed: int = 0,
) -> FixedPointReport:
    """Judge a gradient through a fixed point z* = f(z*, x, θ), whatever computed it.

    Parameters
    ----------
    f : callable
        f(z, x, theta) → an array like z. It gets arrays of the kinds that were given: NumPy's, PyTorch's, JAX's or any
        that DLPack carries; in float64 where it can take them, else in the dtype given.
    z : array
        A solution, or where to look for one.
    theta : mapping of str to array
        θ.
    x : anything
        Handed on; arrays of floats in float64.
    gradient : mapping of str to array
        ∂L/∂θ for some or all of θ, L = ⟨cotangent, z*(θ)⟩. A ``cotangent`` by which it was pulled back, or a ``loss``.
    cotangent : array like z
    loss : callable
        z ↦ L, a number, in place of the cotangent.
    n_directions : int
        Random directions per parameter, and as many through all together.
    tol : float, optional
        Largest relative error of a right gradient; by default 1e-5, for a gradient in single precision 1e-4, in half
        precision 2e-2.
    seed : int
        Of the directions.

    Returns
    -------
    FixedPointReport

    Raises
    ------
    ValueError
        For what does not fit: a shape, values that are not finite, an f that gives two results for one argument.
    NoFixedPoint
        Where iteration from z does not come to rest.

    Notes
    -----
    z* is found by Anderson's acceleration and then, for up to 400 numbers in z, by Newton's method, which follow one
    branch of solutions; f may be smooth or piecewise so, and need not contract. Kinks further than the shortest step, a
    millionth or so of θ, do not disturb the extrapolation.
    """
    if (cotangent is None) == (loss is None):
        raise ValueError("cotangent and loss: expected one of the two")
    if not callable(f):
        raise ValueError(f"f is of type {type(f).__name__}; expected a callable f(z, x, theta)")
    if loss is not None and not callable(loss):
        raise ValueError(f"loss is of type {type(loss).__name__}; expected a callable z to L")
    n_directions = _checks.whole("n_directions", n_directions)
    seed = _checks.whole("seed", seed, 0)
    values = {name: _array(f"theta[{name!r}]", value) for name, value in _mapping("theta", theta).items()}
    found: dict[str, NDArray] = {}
    least = _TOLERANCE["64"]
    for name, value in _mapping("gradient", gradient).items():
        if name not in values:
            raise ValueError(f"gradient has {name!r}; theta has {', '.join(map(repr, values))}")
        found[name] = _array(f"gradient[{name!r}]", value)
        shape, expected = found[name].shape, values[name].shape
        if shape != expected:
            raise ValueError(f"gradient[{name!r}] has shape {shape}; expected that of theta, {expected}")
        least = max(least, _TOLERANCE.get(dtype_name(value)[-2:], 0.0))
    tol = least if tol is None else _checks.positive("tol", tol)
    problem = _Problem(f, z, theta, values, x, cotangent, loss)
    once = problem(values, problem.start)
    if not np.all(np.isfinite(once)):
        raise ValueError("f returned values that are NaN or infinite at z; expected finite ones")
    if not np.array_equal(once, problem(values, problem.start)):
        raise ValueError("f gave two results for the same arguments; expected a function: fix its randomness")
    base = problem.solve(values, problem.start)
    inverse = problem.inverse(base)
    if inverse is not None:
        base = problem.solve(values, base.z, inverse)
    rng = np.random.default_rng(seed)
    lipschitz = problem.lipschitz(base, rng)
    rounding = problem.rounding(base, rng)
    noise = problem.noise_of(base, lipschitz, inverse, rounding, rng)
    sizes = {name: _size(values[name]) for name in found}
    spread = {name: float(np.linalg.norm(found[name])) * sizes[name] for name in found}
    ignored = _IGNORED * max(spread.values()) + _NOTHING * problem.size_of_loss(base)
    rows = []
    together = [("(all)", tuple(found))] if len(found) > 1 else []
    for label, names in (*((name, (name,)) for name in found), *together):
        typical = float(np.sqrt(sum(spread[name] ** 2 for name in names)))
        for number in range(n_directions):
            direction = {name: sizes[name] * rng.standard_normal(values[name].shape) for name in names}
            given = float(sum(np.vdot(found[name], direction[name]) for name in names))
            samples = _sample(problem, base, inverse, direction, noise, given, tol * max(abs(given), typical))
            rows.append(_judge(label, number, given, samples, typical, ignored, tol))
    certificate = (base.residual + rounding) / (1.0 - lipschitz) if lipschitz < 1 else np.inf
    errors = base.residual, rounding, lipschitz, certificate, noise(base)
    size = float(np.linalg.norm(base.z)) or 1.0
    distance = float(np.linalg.norm(problem.start - base.z)) / size
    reach = certificate if lipschitz < 1 else (base.residual + rounding) / np.sqrt(grain(problem.dtype))
    start = distance, reach / size + grain(dtype_name(z))
    return FixedPointReport(tuple(rows), tol, base.loss, *errors, problem.dtype, problem.n_evaluations, *start)


class _Point(NamedTuple):
    """A fixed point as it was found, flat, with ‖f(z) − z‖ and the loss there."""

    z: NDArray
    residual: float
    loss: float


class _Samples(NamedTuple):
    """Steps along a direction, the losses' changes on the right (1) and the left (-1), and how uncertain these are."""

    steps: list[float]
    changes: dict[int, list[float]]
    noise: list[float]


class _Problem:
    """f on flat float64 arrays, and the loss; counts what it costs."""

    def __init__(
        self, f: Any, z: Any, theta: Mapping[str, Any], values: Theta, x: Any, cotangent: Any, loss: Any
    ) -> None:
        start = _array("z", z)
        self.f, self.z, self.theta, self.values, self.x, self.loss_of = f, z, theta, values, x, loss
        self.shape, self.start = start.shape, start.ravel()
        self.n_evaluations, self.dtype = 0, "float64"
        self.c: NDArray | None = None
        if cotangent is not None:
            c = _array("cotangent", cotangent)
            if c.shape != self.shape:
                raise ValueError(f"cotangent has shape {c.shape}; expected that of z, {self.shape}")
            self.c = c.ravel()
        self.promoted = True
        try:
            self._raw(values, self.start)
        except Exception:
            # It does not take float64; what it raises for the dtypes given is its own error.
            self.promoted = False

    def _raw(self, theta: Theta, z: NDArray) -> Any:
        """What f returns for arrays of the libraries that were given."""
        self.n_evaluations += 1
        handed = {name: _like(self.theta[name], value, self.promoted) for name, value in theta.items()}
        x = _like(self.x, None, self.promoted)
        return self.f(_like(self.z, z.reshape(self.shape), self.promoted), x, handed)

    def __call__(self, theta: Theta, z: NDArray) -> NDArray:
        """f(z), flat."""
        raw = self._raw(theta, z)
        out = _array("what f returned", raw, finite=False)
        if out.shape != self.shape:
            raise ValueError(f"f returned shape {out.shape}; expected that of z, {self.shape}")
        self.dtype = dtype_name(raw)
        return out.ravel()

    def loss(self, z: NDArray) -> float:
        if self.c is not None:
            return float(np.dot(self.c, z))
        value = _array("what loss returned", self.loss_of(_like(self.z, z.reshape(self.shape), self.promoted)))
        if value.size != 1:
            raise ValueError(f"loss returned shape {value.shape}; expected a number")
        return float(value.reshape(()))

    def size_of_loss(self, base: _Point) -> float:
        return abs(base.loss) if self.c is None else float(np.abs(self.c) @ np.abs(base.z))

    def solve(self, theta: Theta, start: NDArray, inverse: NDArray | None = None) -> _Point:
        """The fixed point near ``start``, until no iteration makes the residual smaller.

        With the inverse of I − ∂f/∂z of a point close by, by Newton's method with that slope.
        """
        z, late = start, 0
        with np.errstate(over="ignore", invalid="ignore"):
            r = self(theta, z) - z
            residual = float(np.linalg.norm(r))
            for _ in range(_MOST):
                if residual == 0 or late == (_PATIENCE if residual > self._allowed(z) else 1):
                    break
                after = z + inverse @ r if inverse is not None and late == 0 else self._accelerated(theta, z)
                r_after = self(theta, after) - after
                reached = float(np.linalg.norm(r_after))
                # What only creeps while it is small already is at its rounding.
                late = 0 if reached < 0.5 * residual else late + 1
                if reached < residual:
                    z, r, residual = after, r_after, reached
        # Of a z that has grown without end, f(z) - z is lost to rounding.
        if not residual + grain(self.dtype) * float(np.linalg.norm(z)) <= self._allowed(start):
            raise NoFixedPoint(
                f"f has no fixed point that iteration from z reaches: residual {residual:.1e} at "
                f"|z| = {np.linalg.norm(z):.1e}, where {self._allowed(start):.1e} would do; start closer to one"
            )
        return _Point(z, residual, self.loss(z))

    def _allowed(self, z: NDArray) -> float:
        """The largest residual of what may be called a fixed point."""
        return float(np.sqrt(grain(self.dtype))) * (1.0 + float(np.linalg.norm(z)))

    def _accelerated(self, theta: Theta, z: NDArray) -> NDArray:
        """Some iterations by Anderson's acceleration: the linear solver's, on f(z) = b + (f(z) − b)."""
        b = np.full((1, z.size), (1.0 + np.linalg.norm(z)) / np.sqrt(max(1, z.size)))
        return solvers.anderson(lambda v: self(theta, v[0])[None] - b, b, tol=1e-17, max_iter=_CHUNK, x0=z[None]).x[0]

    def inverse(self, base: _Point) -> NDArray | None:
        """(I − ∂f/∂z)⁻¹ there, by differences; None where z is too large or that is singular."""
        n = base.z.size
        if n > _DENSE:
            return None
        length = float(np.sqrt(grain(self.dtype))) * (1.0 + float(np.linalg.norm(base.z))) / np.sqrt(max(1, n))
        here, system = self(self.values, base.z), np.eye(n)
        for j in range(n):
            moved = base.z.copy()
            moved[j] += length
            system[:, j] -= (self(self.values, moved) - here) / length
        try:
            inverse = np.linalg.inv(system)
        except np.linalg.LinAlgError:
            return None
        return inverse if np.all(np.isfinite(inverse)) else None

    def rounding(self, base: _Point, rng: np.random.Generator) -> float:
        """What f makes of roundings of its arguments, and so of its own: ‖f(z) − z‖ says no more than that."""
        eps, here = grain(self.dtype), self(self.values, base.z)
        largest = eps * float(np.linalg.norm(here))
        for _ in range(4):
            moved = {name: value * (1 + eps * rng.choice([-1, 1], value.shape)) for name, value in self.values.items()}
            after = self(moved, base.z * (1 + eps * rng.choice([-1, 1], base.z.shape)))
            largest = max(largest, float(np.linalg.norm(after - here)))
        return 2.0 * largest

    def lipschitz(self, base: _Point, rng: np.random.Generator) -> float:
        """Largest ‖f(z + v) − f(z)‖/‖v‖ of small v met by power iteration."""
        length = float(np.sqrt(grain(self.dtype))) * (1.0 + float(np.linalg.norm(base.z)))
        largest, here = 0.0, self(self.values, base.z)
        for _ in range(2):
            v = rng.standard_normal(base.z.size)
            for _ in range(12):
                size = float(np.linalg.norm(v))
                if not 0 < size < np.inf:
                    break
                step = length / size * v
                v = self(self.values, base.z + step) - here
                largest = max(largest, float(np.linalg.norm(v)) / length)
        return largest

    def noise_of(
        self, base: _Point, lipschitz: float, inverse: NDArray | None, rounding: float, rng: np.random.Generator
    ) -> Callable[[_Point], float]:
        """How uncertain L is at a fixed point, as a function of that."""
        n, eps = base.z.size, float(np.finfo(float).eps)
        scale = 1.0 + float(np.linalg.norm(base.z))
        if self.c is not None:
            slope = float(np.linalg.norm(self.c))
            own = eps * self.size_of_loss(base)
        else:
            length = 1e-6 * scale / np.sqrt(max(1, n))
            draws = (rng.standard_normal(n) for _ in range(6))
            changes = [abs(self.loss(base.z + length * v) - base.loss) / length for v in draws]
            # ⟨∇L, v⟩ of a drawn v is ‖∇L‖ on average.
            slope = 2.0 * max(changes)
            own = 4.0 * eps * abs(base.loss)
        if inverse is not None and self.c is not None:
            # ⟨c, z − z*⟩ = ⟨(I − J)⁻ᵀ c, r⟩ for a residual r.
            reach = 2.0 * float(np.linalg.norm(inverse.T @ self.c))
            return lambda point: own + reach * (point.residual + rounding)
        if lipschitz < 1:
            return lambda point: own + slope * (point.residual + rounding) / (1.0 - lipschitz)
        length = 1e-5 * scale / np.sqrt(max(1, n))
        others = [self.solve(self.values, base.z + length * rng.standard_normal(n)) for _ in range(3)]
        apart = max(abs(other.loss - base.loss) for other in others)
        farthest = max(float(np.linalg.norm(other.z - base.z)) for other in others)
        least = own + 4.0 * apart + slope * min(farthest, 4.0 * (base.residual + rounding))
        return lambda point: least * max(1.0, point.residual / (base.residual + rounding + eps))


def _sample(
    problem: _Problem,
    base: _Point,
    inverse: NDArray | None,
    direction: Theta,
    noise: Callable[[_Point], float],
    given: float,
    wanted: float,
) -> _Samples:
    """Losses at ever shorter steps on both sides, until the derivative is known to a part of what is wanted."""
    samples = _Samples([], {1: [], -1: []}, [])
    for level in range(LEVELS):
        h = LONGEST / 2**level
        moved = (
            {**problem.values, **{name: problem.values[name] + side * h * d for name, d in direction.items()}}
            for side in samples.changes
        )
        try:
            points = [problem.solve(theta, base.z, inverse) for theta in moved]
        except NoFixedPoint:
            if not samples.steps:
                continue
            break
        samples.steps.append(h)
        for changes, point in zip(samples.changes.values(), points, strict=True):
            changes.append(point.loss - base.loss)
        samples.noise.append(max(map(noise, points)) + noise(base))
        if len(samples.steps) >= _LEAST:
            found, uncertainty = _derivative(samples)
            # A wrong gradient is followed down to where its error rules the remainder.
            wrong = abs(given - found)
            if uncertainty < 0.03 * wanted and (wrong <= wanted or _r2(samples, given)[-4] < 1.02 * wrong * 8 * h):
                break
            if samples.noise[-1] / h > 1e3 * max(wanted, abs(found)):
                break
    return samples


def _derivative(samples: _Samples, sides: Sequence[int] = (1, -1)) -> tuple[float, float]:
    """By extrapolation, from both sides or one; less certain where shorter steps than it was made of speak against it.

    The error is a series in h² where both sides are taken, in h where one is.
    """
    order: Literal[1, 2] = 2 if len(sides) == 2 else 1
    changes = [sum(side * samples.changes[side][k] for side in sides) for k in range(len(samples.steps))]
    columns = zip(samples.steps, changes, samples.noise, strict=True)
    quotients = [(change / (order * h), noise / h) for h, change, noise in columns]
    value, uncertainty = extrapolate(quotients, order=order)
    ends = range(1, len(quotients) + 1)
    made_of = next(k for k in ends if extrapolate(quotients[:k], order=order)[0] == value)
    # Beyond a kink two orders may agree by chance. Without one the error falls with the step.
    error = 2.0 * abs(quotients[made_of - 1][0] - value)
    for quotient, noise in quotients[made_of:]:
        error /= 2**order
        uncertainty = max(uncertainty, abs(quotient - value) - error - 3 * noise)
    return value, uncertainty


def _r2(samples: _Samples, given: float, sides: Sequence[int] = (1, -1)) -> list[float]:
    """R₂, the larger of both sides or of the one given; R₁ where the gradient given is 0."""
    return [max(abs(samples.changes[s][k] - s * h * given) for s in sides) for k, h in enumerate(samples.steps)]


def _judge(
    label: str, number: int, given: float, samples: _Samples, typical: float, ignored: float, tol: float
) -> Remainders:
    if len(samples.steps) < 2:
        raise NoFixedPoint(
            f"{label}: f has no fixed point near z for parameters moved by {LONGEST / 2**LEVELS:.0e} of their size; "
            "differences say nothing here"
        )
    both, right, left = (_derivative(samples, sides) for sides in ((1, -1), (1,), (-1,)))
    scale = max(abs(given), typical, *(abs(value) for value, _ in (both, right, left)))
    allowed = max(tol * scale, ignored)
    beyond = allowed + 10 * (right[1] + left[1])
    kinked = abs(right[0] - left[0]) > beyond
    verdict: Verdict = "undecidable"
    if kinked:
        side, (found, uncertainty) = min(((1, right), (-1, left)), key=lambda s: abs(s[1][0] - given))
        r2 = _r2(samples, given, (side,))
        # Between the derivatives to the two sides nothing is wrong.
        wrong = max(min(right[0], left[0]) - given, given - max(right[0], left[0])) > beyond
    else:
        found, uncertainty = min((both, right, left), key=lambda pair: pair[1])
        r2 = _r2(samples, given)
        # Estimates that disagree with the best one by more than both know are a warning.
        for value, doubt in (both, right, left):
            uncertainty = max(uncertainty, abs(value - found) - 10 * doubt)
        wrong = abs(given - found) > allowed + 10 * uncertainty
    if abs(given - found) + uncertainty <= allowed:
        verdict = "right"
    elif wrong:
        verdict = "wrong"
    error = abs(given - found) / scale if scale > 0 else 0.0
    r1 = _r2(samples, 0.0)
    first, second = (observed_order(samples.steps, curve, samples.noise) for curve in (r1, r2))
    told = label, number, given, found, uncertainty, error, scale, first, second, kinked, verdict
    return Remainders(*told, tuple(samples.steps), tuple(r1), tuple(r2), tuple(samples.noise))


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _size(value: NDArray) -> float:
    """Root mean square of a parameter, 1 where it is 0."""
    size = float(np.sqrt(np.mean(value**2))) if value.size else 0.0
    return size if size > 0 else 1.0


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{name} is {type(value).__name__}; expected a mapping of names to arrays, not empty")
    return value


def _array(name: str, value: Any, *, finite: bool = True) -> NDArray[np.float64]:
    """Any library's array of floats as NumPy's in float64."""
    out = _checks.reals(name, as_array(name, value.cpu() if hasattr(value, "cpu") else value))
    if finite and not np.all(np.isfinite(out)):
        raise ValueError(f"{name} has values that are NaN or infinite; expected finite ones")
    return out


def _like(given: Any, value: NDArray | None, promoted: bool) -> Any:
    """An array of the library of ``given``, with its values or others; in float64, or in its own dtype."""
    if isinstance(given, (tuple, list)):
        return type(given)(_like(part, None, promoted) for part in given)
    if isinstance(given, Mapping):
        return {name: _like(part, None, promoted) for name, part in given.items()}
    if not hasattr(given, "dtype"):
        return given if value is None else value.copy()
    if value is None:
        if "float" not in str(given.dtype):
            return given
        value = _array("x", given)
    if isinstance(given, (np.ndarray, np.generic)):
        return value.astype(np.float64 if promoted else given.dtype)
    # Without a namespace, the module of the class: torch of torch.Tensor.
    module = type(given).__module__
    has_namespace = hasattr(given, "__array_namespace__")
    library = given.__array_namespace__() if has_namespace else sys.modules[module.partition(".")[0]]
    if not hasattr(library, "from_dlpack"):
        raise ValueError(f"arrays of {module} cannot be made from others; expected DLPack")
    out = library.from_dlpack(np.array(value))
    if hasattr(given, "device") and hasattr(out, "to"):
        return out.to(given.device) if promoted else out.to(given.device, given.dtype)
    return out if promoted else out.astype(given.dtype)
