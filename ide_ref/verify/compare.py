"""A gradient against another: which parameter differs, by how much, and which known mistake it looks like.

Every known mistake is planted in our own backward pass and the gradient it gives is compared with the foreign
one, so that a name is a match to rounding and not a guess.

Source: the list of mistakes in ``docs/check-your-gradient.md``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, solvers
from ide_ref._files import finite
from ide_ref.constraints import BatchNorm, SingularPair
from ide_ref.equilibrium import Equilibrium, Linearisation, linearise
from ide_ref.implicit import hebbian, right_hand_side, solve_beta
from ide_ref.maps import AffineMap, BatchNormCache, Frozen, Pullback
from ide_ref.network import Params
from ide_ref.neurons import IF, Neuron
from ide_ref.simulation import Rates, simulate
from ide_ref.synapses import Dense, accumulate, to_channels_last
from ide_ref.verify.arrays import as_array, dtype_name, grain
from ide_ref.verify.gradient import RESOLUTION, ZERO

_Cache = BatchNormCache | None

DECISIVE = 30.0
"""A mistake is named when it explains the foreign gradient this many times better than no mistake does."""

MOST_ITERATIONS = 200
"""Up to which an early end of (BETA) is recognised."""


@dataclass(frozen=True)
class Context:
    """Where two gradients were taken, so that mistakes can be planted there.

    ``state`` is what :func:`~ide_ref.simulation.simulate` or :func:`~ide_ref.equilibrium.find_equilibrium` returned.
    """

    frozen: Frozen
    state: Rates | Equilibrium
    d_logits: NDArray
    """(B, n_classes): ∂L/∂o of the mean loss."""
    x: NDArray | None = None
    """(B, *input_shape) or (B, T, *input_shape): the input; needed for mistakes in time averages."""

    @cached_property
    def linearisation(self) -> Linearisation:
        """(FP) around the state."""
        return linearise(self.frozen, self.state.a, self.frozen.drive(self.state.x_mean))

    def gradients(self) -> Params:
        """The right gradient."""
        return self.wrong()

    def changed(self, change: Callable[[NDArray], NDArray]) -> Params:
        """The right gradient with a change to every array."""
        return {name: change(g) for name, g in self.gradients().items()}

    def wrong(
        self,
        *,
        beta_at: Linearisation | None = None,
        at: Linearisation | None = None,
        a: NDArray | None = None,
        x_mean: NDArray | None = None,
        beta: Callable[[NDArray], NDArray] | None = None,
        solver: str = "gmres",
        max_iter: int = 2000,
    ) -> Params:
        """The gradient with a part of the backward pass replaced; without arguments the right one.

        (BETA) is solved around ``beta_at``, as far as ``solver`` and ``max_iter`` go; the last sweep and (HEBB) are
        taken around ``at``, with the rates ``a`` (B, n) and the input ``x_mean`` (B, *input_shape) in the outer
        products. ``beta`` is applied to δ = (1/V_th) M β, (B, n), before (HEBB).
        """
        at = at or self.linearisation
        state = self.state if a is None else replace(self.state, a=a)
        g, grads = self.frozen.read_out_pull_back(state, self.d_logits)
        # In single precision no solver would ever reach what double precision does.
        tol = max(1e-12, 4.0 * float(np.finfo(g.dtype).eps))
        limits: dict[str, Any] = {"tol": tol, "max_iter": max_iter, "allow_unconverged": True}
        _, delta, _ = solve_beta(beta_at or at, g, at=at, solver=solver, **limits)
        if beta is not None:
            delta = beta(delta)
        if a is not None:
            at = replace(at, forward=a, feedback=a)
        found, _ = hebbian(at, delta, self.state.x_mean if x_mean is None else x_mean)
        return {**grads, **found}

    def iterates(self, tol: float) -> Iterator[Params]:
        """The gradients with β after 2, 3, ... iterations β ← g + Jᵀ β of (BETA), begun at β = g.

        They end where no sample's β moves by more than a hundredth of ``tol``, relatively, or than it is rounded, where
        all have left the range of the dtype, and after :data:`MOST_ITERATIONS`.
        """
        at = self.linearisation
        g, grads = self.frozen.read_out_pull_back(self.state, self.d_logits)
        b, others = right_hand_side(at, g)
        least = max(1e-2 * tol, 4.0 * float(np.finfo(b.dtype).eps))
        beta = b + at.sweep_back(b)[0]
        for _ in range(2, MOST_ITERATIONS + 1):
            before, beta = beta, b + at.sweep_back(beta)[0]
            if not np.any(solvers.norms(beta - before) > least * solvers.norms(beta)):
                return
            _, delta = at.spread_back(beta, others)
            found, _ = hebbian(at, delta, self.state.x_mean)
            yield {**grads, **found}

    def with_maps(self, change: Callable[[AffineMap], AffineMap]) -> Linearisation:
        """The linearisation with every map replaced."""
        return replace(self.linearisation, maps=tuple(change(m) for m in self.linearisation.maps))

    def with_norms(self, change: Callable[[BatchNorm], BatchNorm]) -> Linearisation:
        """The linearisation with every normalisation by the batch's statistics replaced."""
        return self.with_maps(lambda m: replace(m, norm=change(m.norm)) if m.norm and m.norm.from_batch else m)

    def with_pullbacks(self, kind: type[Pullback]) -> Linearisation:
        """The linearisation with another way from the maps' gradients back to the parameters."""
        pullbacks = tuple(kind(**_fields(p, Pullback)) for p in self.frozen.pullbacks)
        return replace(self.linearisation, frozen=replace(self.frozen, pullbacks=pullbacks))

    def wrong_in_hebb(self, at: Linearisation) -> Params:
        """The gradient where the last sweep and (HEBB) alone see another linearisation."""
        return self.wrong(at=at, beta_at=self.linearisation)


@dataclass(frozen=True)
class Mistake:
    """A known mistake: its name, what it says, and the gradient it gives (None where it makes no difference)."""

    name: str
    says: str
    plant: Callable[[Context], Params | None] = field(repr=False)


class _Untransposed(AffineMap):
    def adjoint(self, cells: NDArray, out: NDArray | None = None) -> NDArray:
        square = self.synapse.n_in == self.synapse.n_out
        return accumulate(self.linear(cells), out) if square else super().adjoint(cells, out)


class _Unflipped(AffineMap):
    def adjoint(self, cells: NDArray, out: NDArray | None = None) -> NDArray:
        flipped = {**_fields(self, AffineMap), "taps": np.ascontiguousarray(self.taps[::-1])}
        return AffineMap(**flipped).adjoint(cells, out)


@dataclass(frozen=True)
class _MaskedAfter(AffineMap):
    """A map whose transpose is followed by the sender's mask."""

    mask: NDArray = field(kw_only=True)

    def adjoint(self, cells: NDArray, out: NDArray | None = None) -> NDArray:
        return accumulate(super().adjoint(cells) * self.mask, out)


class _Unprojected(Pullback):
    def norm_gradient(self, pair: SingularPair) -> tuple[NDArray, NDArray]:
        weight = self.params[f"{self.connection.name}.weight"]
        return np.zeros(weight.size, weight.dtype), np.ones(1, weight.dtype)


class _Unrestricted(Pullback):
    def of_weight(self, d_weight: NDArray) -> Params:
        return {**super().of_weight(d_weight), f"{self.connection.name}.weight": d_weight}


class _MeanOverPositions(Pullback):
    def gradients(self, m: AffineMap, delta: NDArray, s: NDArray, cache: _Cache = None) -> tuple[Params, Params]:
        grads, statistics = super().gradients(m, delta, s, cache)
        if not isinstance(m.synapse, Dense):
            positions = m.synapse.n_out // m.synapse.out_shape[0]
            grads = {name: g if name.endswith("alpha") else g / positions for name, g in grads.items()}
        return grads, statistics


class _Transposed(Pullback):
    def gradients(self, m: AffineMap, delta: NDArray, s: NDArray, cache: _Cache = None) -> tuple[Params, Params]:
        grads, statistics = super().gradients(m, delta, s, cache)
        if isinstance(m.synapse, Dense) and m.synapse.n_in == m.synapse.n_out and m.norm is None:
            post = delta if m.keep is None else m.keep * delta
            grads.update(self.of_weight(m.synapse.from_taps(m.synapse.hebbian(s, post))))
        return grads, statistics


class _NormWithoutMean(BatchNorm):
    def linear(self, v: NDArray, z: NDArray) -> NDArray:
        mean = np.mean(v.reshape(-1, self.weight.shape[0]), axis=0) * self.scale
        return super().linear(v, z) + np.tile(mean, v.shape[1] // mean.size)

    def pull_back(self, delta: NDArray, z: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        return (self.linear(delta, z), *super().pull_back(delta, z)[1:])


def _fields(part: Any, kind: type) -> dict[str, Any]:
    return {own.name: getattr(part, own.name) for own in fields(kind)}


def _as(kind: type, of: type = AffineMap) -> Callable[[Any], Any]:
    return lambda part: kind(**_fields(part, of))


def _thresholds(ctx: Context) -> NDArray:
    return ctx.frozen.network.thresholds(ctx.frozen.dtype)


def _scaled_slope(ctx: Context, factor: float | NDArray) -> Linearisation:
    return replace(ctx.linearisation, slope=factor * ctx.linearisation.slope)


def _without_mask(ctx: Context) -> Linearisation:
    slope = ctx.linearisation.slope
    return replace(ctx.linearisation, slope=np.broadcast_to(1.0 / _thresholds(ctx), slope.shape).copy())


def _mask_on_the_wrong_side(ctx: Context) -> Params:
    """β = (I − (1/V_th) M Wᵀ)⁻¹ g in place of (I − (1/V_th) Wᵀ M)⁻¹ g, then (HEBB) as it stands."""
    lin = ctx.linearisation
    net = ctx.frozen.network
    mask = lin.slope != 0
    maps = tuple(
        m if source < 0 else _MaskedAfter(**_fields(m, AffineMap), mask=mask[:, net.slice_of(source)])
        for m, (source, _) in zip(lin.maps, net.edges, strict=True)
    )
    return ctx.wrong(at=replace(_without_mask(ctx), maps=maps), beta=lambda delta: mask * delta)


def _averaged(ctx: Context, neuron: Neuron | None = None, *, earlier: int = 0) -> Params | None:
    """With rates as another neuron, or each its own, averages them, some steps earlier, of a repeated rollout.

    None without a rollout.
    """
    if not isinstance(ctx.state, Rates) or ctx.x is None or ctx.state.n_steps <= earlier:
        return None
    n_steps = ctx.state.n_steps - earlier
    x = ctx.x[:, :n_steps] if ctx.frozen.network.is_spike_input(ctx.x) else ctx.x
    run = simulate(ctx.frozen, x, n_steps, record=True).recording
    if run is None:
        return None
    stretches, s = ctx.frozen.network.stretches, run.s.astype(ctx.frozen.dtype)
    rates = [(neuron or own).time_average(s[:, :, columns]) for own, columns in stretches]
    return ctx.wrong(a=np.concatenate(rates, axis=1))


def _unnormalised(ctx: Context) -> Params | None:
    if not isinstance(ctx.state, Rates):
        return None
    sums = ctx.state.a.copy()
    for neuron, columns in ctx.frozen.network.stretches:
        sums[:, columns] *= sums.dtype.type(neuron.total_weight(ctx.state.n_steps))
    return ctx.wrong(a=sums)


def _input_as(pick: Callable[[Context, NDArray], NDArray]) -> Callable[[Context], Params | None]:
    def plant(ctx: Context) -> Params | None:
        if ctx.x is None or not ctx.frozen.network.is_spike_input(np.asarray(ctx.x)):
            return None
        x_mean = pick(ctx, np.asarray(ctx.x, ctx.frozen.dtype))
        cells = to_channels_last(x_mean, ctx.frozen.network.input_shape)

        # z of the batch belongs to the right x̄; with a wrong one it is recomputed where it enters.
        def change(m: AffineMap) -> AffineMap:
            return m if m.z is None else replace(m, z=m.pre_activation(cells))

        return ctx.wrong(x_mean=x_mean, at=ctx.with_maps(change), beta_at=ctx.linearisation)

    return plant


def _input_summed(ctx: Context, x: NDArray) -> NDArray:
    return np.asarray(ctx.state.x_mean * x.dtype.type(ctx.frozen.network.input_neuron.total_weight(x.shape[1])))


def _flipped(g: NDArray) -> NDArray:
    return g[:, :, ::-1, ::-1] if g.ndim == 4 else g


_SAYS = {
    "sign": "the sign is wrong: this is the direction of ascent",
    "sum loss": "the loss is summed over the batch, not averaged: every gradient is the batch size times too large",
    "factor V_th missing": "1/V_th is missing in (HEBB): every connection's gradient is V_th times too large",
    "V_th missing in beta": "1/V_th is missing inside (BETA)",
    "half of beta": "beta is half as large as it should be, as after averaging x with f(x) + g",
    "damped iteration": (
        "(BETA) was iterated as x <- (x + J'x - x + g)/2, whose limit is (2I - J')^-1 g: about half of beta, turned"
    ),
    "no feedback in beta": "beta is g itself: (BETA) was not solved, as in a one-step gradient",
    "one iteration of beta": "(BETA) was stopped after one iteration",
    "mask missing": "the mask M is missing, in (BETA) and in (HEBB)",
    "mask missing in beta": "the mask M is missing in (BETA)",
    "mask missing in hebb": "the mask M is missing in (HEBB)",
    "mask on the wrong side": "(BETA) was solved with M W^T in place of W^T M",
    "W for its transpose": "(BETA) was solved with W in place of W^T",
    "unflipped kernel": "the transposed convolution in (BETA) uses the kernel upside down",
    "flipped weight gradient": "the kernels' gradients are upside down",
    "outer product transposed": "(HEBB) of the feedback is a beta^T in place of beta a^T",
    "mean over positions": "gradients of convolutions are averaged over positions, not summed",
    "a[T-1] for a[T]": "the rates are those of the step before the last",
    "rates not normalised": "the rates are sums: the division by S_T of (RATE) is missing",
    "plain mean of spikes": "the rates of LIF neurons are plain means, without the weights of (RATE)",
    "last frame for the mean input": "the input's gradient uses the last frame in place of the average input",
    "plain mean of the input": "the average input is a plain mean, without the weights of (RATE)",
    "input summed": "the input's sum over time is used in place of its average",
    "batch statistics constant": (
        "batch normalisation is differentiated as if mean and variance did not depend on the batch"
    ),
    "batch mean missing": "the term of the batch mean is missing in the gradient of batch normalisation",
    "projection term missing": "the norm in (NORM) is treated as a constant: its projection term is missing",
    "restriction ignored": "the gradient is that of the restricted weight W, not of the raw weight",
    "dropout ignored": "the dropout mask is missing on the way back",
}

_PLANTED: dict[str, Callable[[Context], Params | None]] = {
    "sign": lambda ctx: ctx.changed(np.negative),
    "sum loss": lambda ctx: ctx.changed(lambda g: len(ctx.d_logits) * g),
    "factor V_th missing": lambda ctx: ctx.wrong(beta=lambda delta: _thresholds(ctx) * delta),
    "V_th missing in beta": lambda ctx: ctx.wrong(beta_at=_scaled_slope(ctx, _thresholds(ctx))),
    "half of beta": lambda ctx: ctx.wrong(beta=lambda delta: 0.5 * delta),
    "damped iteration": lambda ctx: ctx.wrong(solver="damped"),
    "no feedback in beta": lambda ctx: ctx.wrong(beta_at=_scaled_slope(ctx, 0.0)),
    "one iteration of beta": lambda ctx: ctx.wrong(solver="fixed_point", max_iter=1),
    "mask missing": lambda ctx: ctx.wrong(at=_without_mask(ctx)),
    "mask missing in beta": lambda ctx: ctx.wrong(beta_at=_without_mask(ctx)),
    "mask missing in hebb": lambda ctx: ctx.wrong_in_hebb(_without_mask(ctx)),
    "mask on the wrong side": _mask_on_the_wrong_side,
    "W for its transpose": lambda ctx: ctx.wrong(beta_at=ctx.with_maps(_as(_Untransposed))),
    "unflipped kernel": lambda ctx: ctx.wrong(at=ctx.with_maps(_as(_Unflipped))),
    "flipped weight gradient": lambda ctx: ctx.changed(_flipped),
    "outer product transposed": lambda ctx: ctx.wrong_in_hebb(ctx.with_pullbacks(_Transposed)),
    "mean over positions": lambda ctx: ctx.wrong_in_hebb(ctx.with_pullbacks(_MeanOverPositions)),
    "a[T-1] for a[T]": lambda ctx: _averaged(ctx, earlier=1),
    "rates not normalised": _unnormalised,
    "plain mean of spikes": lambda ctx: _averaged(ctx, IF()),
    "last frame for the mean input": _input_as(lambda ctx, x: x[:, -1]),
    "plain mean of the input": _input_as(lambda ctx, x: x.mean(axis=1)),
    "input summed": _input_as(_input_summed),
    "batch statistics constant": lambda ctx: ctx.wrong_in_hebb(ctx.with_norms(lambda n: replace(n, from_batch=False))),
    "batch mean missing": lambda ctx: ctx.wrong_in_hebb(ctx.with_norms(_as(_NormWithoutMean, BatchNorm))),
    "projection term missing": lambda ctx: ctx.wrong_in_hebb(ctx.with_pullbacks(_Unprojected)),
    "restriction ignored": lambda ctx: ctx.wrong_in_hebb(ctx.with_pullbacks(_Unrestricted)),
    "dropout ignored": lambda ctx: ctx.wrong(at=ctx.with_maps(lambda m: replace(m, keep=None))),
}

MISTAKES = tuple(Mistake(name, says, _PLANTED[name]) for name, says in _SAYS.items())
"""The library of signatures."""


@dataclass(frozen=True)
class ComparedRow:
    """One parameter's gradient against the foreign one."""

    parameter: str
    status: str
    """``same``, ``differs``, ``missing``, ``unexpected``, ``wrong shape``, ``not finite`` or ``no numbers``."""
    distance: float = float("nan")
    """‖theirs − ours‖ over the larger of the two norms; NaN where it cannot be taken."""
    cosine: float = float("nan")
    """Of the angle between them; NaN where one is zero."""
    ratio: float = float("nan")
    """‖theirs‖/‖ours‖; NaN where one is zero."""
    detail: str = ""
    """What else there is to say: of a name, a shape, a dtype, a value, or that a gradient is zero to rounding."""
    looks_like: tuple[str, ...] = ()
    """Mistakes that explain this parameter taken alone."""
    theirs: str = ""
    """Name of the foreign array that was compared; empty where none was."""
    tol: float = float("nan")
    """Relative distance up to which they are the same: that asked for, or the grain of half precision."""


@dataclass(frozen=True)
class Suspect:
    """A known mistake that explains the foreign gradient."""

    name: str
    says: str
    left: float
    """Root mean square over the parameters of what it leaves unexplained, relative."""


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare`."""

    rows: tuple[ComparedRow, ...]
    suspects: tuple[Suspect, ...]
    """Mistakes that explain everything that differs, the best first; several where they cannot be told apart."""
    distance: float
    """Root mean square over the parameters of the relative distances."""
    tol: float
    factor: float = float("nan")
    """What every gradient compared is ours times, where they differ by nothing else; NaN elsewhere."""

    @property
    def same(self) -> bool:
        """Whether something was compared, and all that is there agrees; see ``complete``."""
        return self.n_compared > 0 and all(row.status in ("same", "missing") for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether every parameter was compared."""
        return self.n_compared == self.n_parameters

    @property
    def n_compared(self) -> int:
        """Parameters whose numbers were compared."""
        return sum(row.status in ("same", "differs") for row in self.rows)

    @property
    def n_parameters(self) -> int:
        """Our parameters."""
        return sum(row.status != "unexpected" for row in self.rows)

    @property
    def mistake(self) -> str | None:
        """Name of the best suspect; None where nothing differs or nothing known explains it."""
        return self.suspects[0].name if self.suspects else None

    def table(self) -> str:
        """The report as text."""
        width = max(len(name) for name in ("parameter", *(row.parameter for row in self.rows)))
        lines = [f"{'parameter':<{width}}  {'status':<11}  distance     cosine  norm ratio"]
        for row in self.rows:
            note = "; ".join(filter(None, (row.detail, ", ".join(row.looks_like))))
            numbers = f"{row.distance:>8.1e}  {row.cosine:>9.6f}  {row.ratio:#10.6g}".replace("nan", "  -")
            lines.append(f"{row.parameter:<{width}}  {row.status:<11}  {numbers}  {note}".rstrip())
        lines.append(f"{self.n_compared} of {self.n_parameters} parameters compared")
        if self.suspects:
            first, *others = self.suspects
            left = f"this leaves {first.left:.1e} of {self.distance:.1e}"
            told = [f"looks like: {first.name}: {first.says} ({left})"]
            told += [f"       or: {other.name}: {other.says}" for other in others]
            lines += [part for line in told for part in textwrap.wrap(line, 120, subsequent_indent=12 * " ")]
        elif np.isfinite(self.factor):
            lines.append(f"every gradient compared is {self.factor:.6g} times ours")
        elif any(row.status == "differs" for row in self.rows):
            lines.append("they differ, and no single known mistake explains all of it")
        elif self.n_compared:
            lines.append(f"they agree to {max(row.tol for row in self.rows if row.status == 'same'):.1e}")
        elif given := sorted({row.status for row in self.rows} - {"missing"}):
            lines.append(f"nothing was judged; all that was given: {', '.join(given)}")
        return "\n".join(lines)

    __str__ = table

    def __repr__(self) -> str:
        verdict = "same" if self.same else "different"
        return (
            f"Comparison({verdict}, {self.n_compared} of {self.n_parameters} parameters, distance {self.distance:.1e})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; numbers that are not finite become null."""
        own = asdict(self)
        verdict = {"same": self.same, "complete": self.complete, "mistake": self.mistake}
        counts = {"n_compared": self.n_compared, "n_parameters": self.n_parameters}
        return finite({**verdict, **counts, "parameters": own.pop("rows"), **own})


def _size(x: NDArray) -> float:
    """‖x‖, right also where squares leave the range; at most the largest number."""
    return min(float(solvers.norms(x.reshape(1, -1))[0]), float(np.finfo(np.float64).max))


def _distance(theirs: NDArray, ours: NDArray, floor: float) -> float:
    largest = max(float(np.max(np.abs(theirs), initial=0.0)), float(np.max(np.abs(ours), initial=0.0)), floor)
    # A power of two changes no bit, and brings the squares into the range.
    power = -int(np.frexp(largest)[1])
    theirs, ours, floor = np.ldexp(theirs, power), np.ldexp(ours, power), float(np.ldexp(floor, power))
    scale = max(float(np.linalg.norm(theirs)), float(np.linalg.norm(ours)), floor)
    return 0.0 if scale == 0 else float(np.linalg.norm(theirs - ours)) / scale


def compare(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, context: Context | None = None, tol: float = 1e-6
) -> Comparison:
    """Say which parameters' gradients differ, by how much, and which known mistake that looks like.

    Parameters
    ----------
    ours : mapping of str to array
        The right gradients, as in ``backward(...).gradients``.
    theirs : mapping of str to array
        NumPy arrays, or anything with ``__array__`` or DLPack, of all parameters or some. One that is called like no
        parameter is taken for the parameter that has its shape, where both are the only ones left of it.
    context : Context, optional
        Where both were taken. With it every mistake of :data:`MISTAKES` is planted and compared, and β after 2 to
        :data:`MOST_ITERATIONS` iterations; without it only those that a factor, a transpose or a flip betrays.
    tol : float
        Relative distance, in norm, up to which two gradients are the same. For arrays of bfloat16 and float16 it is at
        least their grain, 2⁻⁷ and 2⁻¹⁰.

    Raises
    ------
    ValueError
        Where `ours` or `theirs` is no mapping, or one of our own arrays is none. Foreign arrays that are missing,
        misshapen or not finite are reported in their row.
    """
    for argument, given in (("ours", ours), ("theirs", theirs)):
        if not isinstance(given, Mapping):
            expected = "a mapping of parameter names to gradients"
            raise ValueError(f"{argument} is a {type(given).__name__}; expected {expected}")
    if context is not None and not isinstance(context, Context):
        raise ValueError(f"context is a {type(context).__name__}; expected a Context")
    _checks.positive("tol", tol)
    own = {name: as_array(name, value) for name, value in ours.items()}
    eps = max((grain(value.dtype.name) for value in own.values()), default=0.0)
    mine = {name: np.asarray(value, np.float64) for name, value in own.items()}
    largest = max((_size(value) for value in mine.values()), default=0.0)
    floor, zero = RESOLUTION * largest, ZERO * eps * largest
    read: dict[str, NDArray] = {}
    refused: dict[str, str] = {}
    for name, value in theirs.items():
        try:
            read[name] = np.asarray(as_array(name, value), np.float64)
        except ValueError as error:
            refused[name] = str(error)
    taken, strangers = _matched(mine, theirs, read)
    rows: dict[str, ComparedRow] = {}
    usable: dict[str, NDArray] = {}
    for name, value in mine.items():
        other = taken.get(name)
        if other is None:
            rows[name] = ComparedRow(name, "missing")
            continue
        if other in refused:
            rows[name] = ComparedRow(name, "no numbers", detail=refused[other], theirs=other)
            continue
        foreign, dtype = read[other], dtype_name(theirs[other])
        notes = [] if other == name else [f"theirs is {other!r}, by its shape {value.shape}"]
        distance = cosine = ratio = allowed = float("nan")
        if foreign.shape != value.shape:
            status = "wrong shape"
            notes.append(f"shape {foreign.shape}, expected {value.shape}")
            if foreign.shape == value.shape[::-1] and _distance(foreign.T, value, floor) <= tol:
                notes.append("its transpose agrees")
        elif not np.all(np.isfinite(foreign)):
            status = "not finite"
            notes.append(f"first at {tuple(int(i) for i in np.argwhere(~np.isfinite(foreign))[0])}")
        else:
            usable[name] = foreign
            allowed = tol
            if dtype in ("bfloat16", "float16"):
                allowed = max(tol, grain(dtype))
                notes.append(f"{dtype}, compared to {allowed:.1e}")
            t, o = _size(foreign), _size(value)
            if t <= zero or o <= zero:
                which = "both are" if max(t, o) <= zero else "ours is" if o <= zero else "theirs is"
                notes.append(f"{which} zero" + " to rounding" * (max(t, o) > 0))
            else:
                cosine, ratio = float(np.vdot(foreign / t, value / o)), t / o
            distance = _distance(foreign, value, floor)
            status = "same" if distance <= allowed else "differs"
        rows[name] = ComparedRow(name, status, distance, cosine, ratio, "; ".join(notes), (), other, allowed)
    for name, detail in strangers.items():
        rows[name] = ComparedRow(str(name), "unexpected", detail=detail, theirs=str(name))
    suspects: tuple[Suspect, ...] = ()
    factor = float("nan")
    overall = _rms([rows[name].distance for name in usable])
    if any(rows[name].status == "differs" for name in usable):
        # Planted mistakes may blow up; then they match nothing.
        with np.errstate(all="ignore"):
            left = [
                (mistake, says, {key: _distance(usable[key], wrong[key], floor) for key in usable if key in wrong})
                for mistake, says, wrong in _planted(mine, context, tol)
            ]
        whole = [Suspect(mistake, says, _rms([*d.values()])) for mistake, says, d in left if len(d) == len(usable)]
        suspects = _likely(whole, overall, tol)
        for name in usable:
            if rows[name].status == "differs" and not suspects:
                alone = [Suspect(mistake, says, d[name]) for mistake, says, d in left if name in d]
                alike = tuple(suspect.name for suspect in _likely(alone, rows[name].distance, tol))
                rows[name] = replace(rows[name], looks_like=alike)
        # A factor beyond the range is none.
        with np.errstate(all="ignore"):
            factor = _factor(mine, usable)
            if not all(_distance(usable[name], factor * mine[name], floor) <= rows[name].tol for name in usable):
                factor = float("nan")
    return Comparison(tuple(rows.values()), suspects, overall, tol, factor)


def _factor(ours: Params, theirs: Params) -> float:
    """The factor of ours that is closest to theirs; NaN where one of them is zero."""
    largest = max((_size(ours[name]) for name in theirs), default=0.0)
    if not largest:
        return float("nan")
    unit = {name: ours[name] / largest for name in theirs}
    size = sum(float(np.vdot(part, part)) for part in unit.values())
    along = sum(float(np.vdot(unit[name], value / largest)) for name, value in theirs.items())
    return along / size if along else float("nan")


def _matched(ours: Params, theirs: Mapping[str, Any], read: Params) -> tuple[dict[str, str], dict[str, str]]:
    """Which of theirs is taken for which of ours; and of those left over, which of ours they may be, in words.

    ``read`` has those of theirs that are arrays.
    """
    taken = {name: name for name in ours if name in theirs}
    without = [name for name in ours if name not in theirs]
    strangers = dict.fromkeys((name for name in theirs if name not in ours), "")
    for shape in {read[name].shape for name in strangers if name in read}:
        alike = [name for name in strangers if name in read and read[name].shape == shape]
        wanted = [name for name in without if ours[name].shape == shape]
        if len(alike) == len(wanted) == 1:
            taken[wanted[0]] = alike[0]
            del strangers[alike[0]]
        elif wanted:
            strangers |= dict.fromkeys(alike, f"may be {' or '.join(wanted)}, by its shape {shape}")
    return taken, strangers


def _planted(ours: Params, context: Context | None, tol: float) -> Iterator[tuple[str, str, Params]]:
    """Name and words of each mistake and the gradient it gives."""
    if context is not None:
        for m in MISTAKES:
            wrong = m.plant(context)
            if wrong is not None:
                yield m.name, m.says, wrong
        for k, wrong in enumerate(context.iterates(tol), 2):
            yield f"beta after {k} iterations", f"(BETA) was stopped after {k} iterations, begun at beta = g", wrong
        return
    by_hand: Sequence[tuple[str, str, Callable[[NDArray], NDArray]]] = (
        ("sign", "the sign is wrong", np.negative),
        ("factor 2", "twice as large: a factor V_th = 2, or a batch of 2 summed", lambda g: 2 * g),
        ("factor 1/2", "half as large: half of beta, or V_th twice", lambda g: 0.5 * g),
        ("outer product transposed", "transposed", lambda g: g.T if g.ndim == 2 and len(set(g.shape)) == 1 else g),
        ("flipped weight gradient", "the kernels' gradients are upside down", _flipped),
    )
    for name, says, change in by_hand:
        yield name, says, {key: change(g) for key, g in ours.items()}


def _rms(distances: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(distances)))) if distances else float("nan")


def _likely(found: Sequence[Suspect], distance: float, tol: float) -> tuple[Suspect, ...]:
    """Those that explain a distance, the best first, and with it those that cannot be told apart from it."""
    decisive = sorted((s for s in found if s.left * DECISIVE <= distance), key=lambda suspect: suspect.left)
    return tuple(s for s in decisive if s.left <= max(10 * decisive[0].left, 1e-2 * tol))
