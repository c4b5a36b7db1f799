"""The error budget of a training gradient: vectors that add up to what separates it from the exact one.

The exact gradient is that of the paper's equations at a* with (BETA) solved to rounding. The training gradient is
taken at a[T], by a solver that stops, perhaps under a profile. One thing at a time is changed from the first to
the second; each part is the difference that its change made, so the parts add up by construction and in their
order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import certificates, solvers
from ide_ref._files import finite
from ide_ref.authors import PAPER, Profile, edited, profile_of
from ide_ref.equilibrium import Equilibrium, contraction, find_equilibrium, linearise
from ide_ref.implicit import Backward, backward
from ide_ref.maps import Frozen, freeze
from ide_ref.network import Network, Params
from ide_ref.simulation import Rates, simulate
from ide_ref.training.losses import cross_entropy
from ide_ref.verify.compare import Context
from ide_ref.verify.gradient import dot

_FORWARD_QUIRKS = {
    "long_average": "average of LIF spike input too large",
    "one_power_step": "norm of the restriction from one power step",
    "clamp_alpha": "alpha clamped when used",
}
_NORM_QUIRKS = ("unbiased_spike_statistics", "batch_statistics_in_beta", "batch_statistics_in_gradient")


@dataclass(frozen=True)
class Part:
    """One cause and what it adds to the gradient."""

    name: str
    says: str
    gradients: Params
    norms: dict[str, float]
    """Of each parameter: the part's norm over that of the parameter's exact gradient."""
    cosines: dict[str, float]
    """... and the cosine between the two; NaN where either is 0."""
    norm: float
    """The same over all parameters together."""
    cosine: float


@dataclass(frozen=True)
class Budget:
    """Result of :func:`explain_gradient`."""

    exact: Params
    """Gradient over the parameters that both have."""
    training: Params
    parts: tuple[Part, ...]
    """What separates them; training = exact + Σ parts."""
    n_steps: int
    """T of training, in steps."""
    distance: float
    """Largest ‖a[T] − a*‖₂ of a sample, in spikes per step."""
    equilibrium_certificate: float
    """Largest certified ‖a − a*‖₂ of a*'s solution, (CERT), on the feedback sources."""
    rates_certificate: float
    """The same of a[T]."""
    exact_certificate: float
    """Largest certified ‖β − β*‖₂ of the exact solve."""
    solver_certificate: float
    """The same of training's."""
    contraction: float
    """γ of the network as it is trained, from operator norms."""

    def part(self, name: str) -> Part:
        """A part by name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def total(self) -> Part:
        """The whole error as one part."""
        error = {name: self.training[name] - self.exact[name] for name in self.exact}
        return _part("whole error", "training gradient minus exact gradient", error, self.exact)

    @property
    def cosine(self) -> float:
        """Cosine between the training gradient and the exact one, over all parameters together."""
        return _part("training", "", self.training, self.exact).cosine

    @property
    def closure(self) -> float:
        """‖Σ parts − whole‖ over the exact gradient's norm: how well the budget adds up."""
        rest = self.total.gradients
        for part in self.parts:
            rest = {name: g - part.gradients[name] for name, g in rest.items()}
        return _norm(rest) / max(_norm(self.exact), np.finfo(float).tiny)

    def table(self) -> str:
        """The budget as text; norms are relative to the exact gradient."""
        parts = [*self.parts, self.total]
        width = max(len(part.name) for part in parts)
        lines = [f"{'part':<{width}}      norm    cosine  largest in"]
        for part in parts:
            # By absolute size: next to a gradient that is 0 but for rounding, anything looks large.
            worst = max(self.exact, key=lambda name: float(np.linalg.norm(part.gradients[name])))
            where = f"{worst} ({part.norms[worst]:.1e})" if part.norm > 0 else "-"
            lines.append(f"{part.name:<{width}}  {part.norm:>8.1e}  {part.cosine:>8.4f}  {where}")
        lines.append(
            f"T = {self.n_steps}: |a[T] - a*| {self.distance:.2e} (certified {self.rates_certificate:.2e}); gamma "
            f"{self.contraction:.4f}; cosine of the training gradient with the exact one {self.cosine:.4f}; the parts "
            f"add up to {self.closure:.1e}"
        )
        lines.append(
            f"certified errors: a* {self.equilibrium_certificate:.1e}, exact beta {self.exact_certificate:.1e}, "
            f"beta as trained {self.solver_certificate:.1e}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The budget as JSON-ready values, without the vectors; numbers that are not finite become null."""
        parts = [{k: v for k, v in vars(part).items() if k != "gradients"} for part in [*self.parts, self.total]]
        own = {name: getattr(self, name) for name in ("n_steps", "closure", "cosine", "distance", "contraction")}
        told = {"equilibrium": "equilibrium", "rates": "rates", "exact_beta": "exact", "solver_beta": "solver"}
        certificates = {name: getattr(self, f"{of}_certificate") for name, of in told.items()}
        return finite({**own, "certificates": certificates, "parts": parts})


def _norm(gradients: Mapping[str, NDArray]) -> float:
    return float(np.sqrt(dot(gradients, gradients)))


def _part(name: str, says: str, gradients: Params, exact: Params) -> Part:
    def compare(u: Mapping[str, NDArray], v: Mapping[str, NDArray]) -> tuple[float, float]:
        of_u, of_v = _norm(u), _norm(v)
        ratio = of_u / of_v if of_v > 0 else (0.0 if of_u == 0 else float("inf"))
        return ratio, dot(u, v) / (of_u * of_v) if of_u > 0 and of_v > 0 else float("nan")

    alone = {key: compare({key: value}, {key: exact[key]}) for key, value in gradients.items()}
    norms, cosines = ({key: pair[i] for key, pair in alone.items()} for i in (0, 1))
    return Part(name, says, gradients, norms, cosines, *compare(gradients, exact))


@dataclass(frozen=True)
class _Setting:
    """What stays the same through the chain: the batch, the labels, and what is random."""

    params: Params
    x: NDArray
    y: NDArray
    training: bool
    seed: int

    def freeze(self, network: Network, profile: Profile) -> Frozen:
        params = dict(self.params)
        for name, shape in network.parameter_shapes.items():
            if name.endswith("singular_vector") and params[name].shape != shape:
                # The other norm's search starts anywhere; it is run to the end.
                params[name] = np.random.default_rng(0).standard_normal(shape)
        rng = np.random.default_rng(self.seed)
        return freeze(edited(network, profile), params, self.x, training=self.training, rng=rng)

    def logits_gradient(self, frozen: Frozen, state: Rates | Equilibrium) -> NDArray:
        return cross_entropy(frozen.read_out(state), self.y)[1]

    def at_equilibrium(self, network: Network, profile: Profile) -> tuple[Frozen, Equilibrium, Backward]:
        frozen = self.freeze(network, profile)
        state = find_equilibrium(frozen, self.x, max_iter=20_000)
        return frozen, state, self.exact(frozen, state)

    def exact(self, frozen: Frozen, state: Rates | Equilibrium, *, quirky: bool = False) -> Backward:
        """Gradient at a state with (BETA) solved to rounding, or as far as it goes under a quirk.

        With batch statistics in (BETA) J need not contract, and there may be no solution to reach.
        """
        d_logits = self.logits_gradient(frozen, state)
        return backward(frozen, state, d_logits, solver="gmres", tol=1e-12, max_iter=5000, allow_unconverged=quirky)


def explain_gradient(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    n_steps: int,
    *,
    solver: str = "fixed_point",
    tol: float = 1e-4,
    max_iter: int = 200,
    profile: Profile | None = None,
    training: bool = True,
    seed: int = 0,
) -> Budget:
    """What separates a training gradient from the exact one, cause by cause.

    The chain of changes, each a part of the budget: the restriction's norm (operator to the network's own), the
    profile's quirks of the forward pass one by one, the rates (a* to a[T], masks still those of a*), the masks (to
    those of a[T]), the treatment of batch normalisation, the point of linearisation, and the solver. Computed
    in float64.

    Parameters
    ----------
    x, y : arrays
        A batch, (B, *input_shape) or (B, T, *input_shape), and its (B,) labels.
    n_steps : int
        T of training, in steps.
    solver, tol, max_iter : str, float, int
        As in training; see :func:`ide_ref.backward`. A solver that stops early is taken as it is.
    profile : Profile, optional
        As in training; by default the network's own.
    training : bool
        With batch statistics and dropout, whose masks ``seed`` draws.

    Raises
    ------
    ValueError
        For inputs that do not fit.
    NotConverged
        When the exact equilibrium or the exact β cannot be found.
    """
    profile = profile_of(network) if profile is None else profile
    theta: Params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    network.check_params(theta)
    setting = _Setting(theta, network.check_input(np.asarray(x), np.float64), np.asarray(y), training, seed)
    chain: list[tuple[str, str, Params]] = []

    # At the equilibrium, from the paper's network to the one that is trained.
    connections = (
        c if c.restriction is None else replace(c, restriction=replace(c.restriction, norm="operator"))
        for c in network.connections
    )
    _, _, start = setting.at_equilibrium(replace(network, connections=tuple(connections)), PAPER)
    exact, so_far = {key: np.asarray(g) for key, g in start.gradients.items()}, PAPER
    frozen, state, found = setting.at_equilibrium(network, so_far)
    chain.append(("restriction norm", "the norm of (NORM) is not that of the operator", found.gradients))
    for quirk, says in _FORWARD_QUIRKS.items():
        if getattr(profile, quirk):
            so_far = replace(so_far, **{quirk: True})
            frozen, state, found = setting.at_equilibrium(network, so_far)
            chain.append((f"profile: {quirk}", says, found.gradients))

    # From a* to a[T].
    rates = simulate(frozen, setting.x, n_steps)
    there = Context(frozen, rates, setting.logits_gradient(frozen, rates))
    masks_at_rest = linearise(frozen, state.a, frozen.drive(state.x_mean))
    moved = there.wrong(at=replace(masks_at_rest, forward=rates.a, feedback=rates.a), max_iter=5000)
    chain.append(("finite T", "outer products, readout and loss at a[T], masks at a*", moved))
    chain.append(("masks", "the mask of a[T] is not that of a*", setting.exact(frozen, rates).gradients))

    # How it is differentiated there.
    for name, says, quirks in (
        ("batch norm", "statistics of batch normalisation differ between simulation and gradient", _NORM_QUIRKS),
        ("profile: sweep_first", "linearised one sweep further on", ("sweep_first",)),
    ):
        if any(getattr(profile, quirk) for quirk in quirks):
            so_far = replace(so_far, **{quirk: getattr(profile, quirk) for quirk in quirks})
            frozen = setting.freeze(network, so_far)
            rates = simulate(frozen, setting.x, n_steps)
            found = setting.exact(frozen, rates, quirky=True)
            if not found.solution.converged:
                residual = float(np.max(found.solution.relative))
                says += f"; (BETA) has no solution within reach: relative residual {residual:.1e}"
            chain.append((name, says, found.gradients))

    d_logits = setting.logits_gradient(frozen, rates)
    trained = backward(frozen, rates, d_logits, solver=solver, tol=tol, max_iter=max_iter, allow_unconverged=True)
    chain.append(("solver", f"(BETA) was solved by {solver} to a residual, not to rounding", trained.gradients))

    parts, since = [], exact
    for name, says, after in chain:
        parts.append(_part(name, says, {key: np.asarray(after[key] - since[key]) for key in exact}, exact))
        since = after
    reached = certificates.on_sources(frozen, certificates.equilibrium_error(frozen, rates.x_mean, rates.a))
    of_rates = float(np.max(solvers.norms(rates.a - state.a))), float(np.max(state.certificate)), float(np.max(reached))
    of_beta = float(np.max(start.certificate)), float(np.max(trained.certificate))
    training_gradient = {key: np.asarray(trained.gradients[key]) for key in exact}
    return Budget(exact, training_gradient, tuple(parts), n_steps, *of_rates, *of_beta, contraction(frozen))


def explain_over_time(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    n_steps: Sequence[int],
    *,
    solver: str = "fixed_point",
    tol: float = 1e-4,
    max_iter: int = 200,
    profile: Profile | None = None,
    training: bool = True,
    seed: int = 0,
) -> tuple[Budget, ...]:
    """:func:`explain_gradient` for several T, in steps, to be drawn by :func:`ide_ref.figures.budget_over_time`.

    A spike train is cut to its first T frames, so a T beyond its length is a ValueError, as one below 1 is.
    """
    x = np.asarray(x)
    is_spike_input = network.is_spike_input(x)
    if not n_steps or min(n_steps) < 1 or (is_spike_input and max(n_steps) > x.shape[1]):
        expected = f"numbers from 1 to {x.shape[1]}, the frames of x" if is_spike_input else "numbers of at least 1"
        raise ValueError(f"n_steps is {tuple(n_steps)}; expected {expected}")
    options: dict[str, Any] = {"solver": solver, "tol": tol, "max_iter": max_iter, "profile": profile}
    options |= {"training": training, "seed": seed}
    cut = {t: x[:, :t] if is_spike_input else x for t in n_steps}
    return tuple(explain_gradient(network, params, cut[t], y, t, **options) for t in n_steps)


def table_over_time(budgets: Sequence[Budget]) -> str:
    """The result of :func:`explain_over_time` as text: a line per T, a column a part.

    Numbers are norms relative to the exact gradient; ``cosine`` is that of the training gradient with it. Parts that
    are 0 throughout are left out. ValueError for none.
    """
    if not budgets:
        raise ValueError("budgets is empty; expected what explain_over_time returns")
    parts = [p.name for p in budgets[0].parts if any(b.part(p.name).norm > 0 for b in budgets)]
    widths = {name: max(len(name), 11) for name in (*parts, "whole error")}
    titles = [f"{name:>{width}}" for name, width in widths.items()]
    lines = ["  ".join([f"{'T':>5}", *titles, "   cosine", "|a[T] - a*|"])]
    for b in budgets:
        norms = [*(b.part(name).norm for name in parts), b.total.norm]
        cells = [f"{norm:>{width}.1e}" for norm, width in zip(norms, widths.values(), strict=True)]
        lines.append("  ".join([f"{b.n_steps:>5}", *cells, f"{b.cosine:>9.4f}", f"{b.distance:>11.1e}"]))
    closure, gamma = max(b.closure for b in budgets), budgets[-1].contraction
    a_star, beta = (max(getattr(b, f"{which}_certificate") for b in budgets) for which in ("equilibrium", "exact"))
    lines.append(f"norms relative to the exact gradient's; the parts add up to {closure:.1e}")
    lines.append(f"gamma {gamma:.4f}; certified errors: a* {a_star:.1e}, exact beta {beta:.1e}")
    return "\n".join(lines)
