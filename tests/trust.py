"""Random systems and networks, nasty ones among them, against exact rational arithmetic.

``python tests/trust.py --number 20000`` draws many and prints tables: certified over true errors by γ, and what was
called converged. The tests draw a few of the same.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import warnings
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from graphs import synapses_between
from numpy.typing import NDArray

from ide_ref import IF, Connection, Dense, Network, Population, Readout, backward, find_equilibrium, freeze, linearise
from ide_ref.certificates import contraction_bound
from ide_ref.solvers import SOLVERS, solve
from ide_ref.synapses import to_channels_last

HONEST = tuple(name for name in SOLVERS if name != "damped")
Rational = list[list[Fraction]]


def fractions(A: NDArray) -> Rational:
    """A matrix of floats as it is, exactly."""
    return [[Fraction(float(v)) for v in row] for row in A]


def solve_exactly(M: Rational, right: list[Fraction]) -> list[Fraction] | None:
    """M x = right by elimination; None where M is singular."""
    rows = [[*row, r] for row, r in zip(M, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = next((k for k in range(i, n) if rows[k][i] != 0), None)
        if pivot is None:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, n):
            if rows[k][i] != 0:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    x = [Fraction(0)] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum((rows[i][j] * x[j] for j in range(i + 1, n)), Fraction(0))) / rows[i][i]
    return x


def distance(x: NDArray, exact: list[Fraction]) -> float:
    """‖x − exact‖₂, to float64 precision."""
    left = [Fraction(float(v)) - e for v, e in zip(x, exact, strict=True)]
    largest = max((abs(v) for v in left), default=Fraction(0))
    if largest == 0:
        return 0.0
    return float(largest) * float(np.sqrt(sum(float(v / largest) ** 2 for v in left)))


class Exact:
    """One sample of a frozen network: its block matrix and drive as rational numbers."""

    def __init__(self, frozen, x_mean: NDArray, sample: int) -> None:
        net = frozen.network
        n = net.state_size
        self.v_th = [
            Fraction(of.v_th) for p, of in zip(net.populations, net.neurons, strict=True) for _ in range(p.size)
        ]
        self.block = [[Fraction(0)] * n for _ in range(n)]
        self.drive = [Fraction(0)] * n
        x = [Fraction(float(v)) for v in to_channels_last(x_mean, net.input_shape)[sample]]
        for c, (source, target) in zip(frozen.maps, net.edges, strict=True):
            W = fractions(c.synapse.apply(c.taps.astype(np.float64), np.eye(c.synapse.n_in)).T)
            channels = c.synapse.out_shape[0]
            first = net.slice_of(target).start
            for i, row in enumerate(W):
                keep = Fraction(1) if c.keep is None else Fraction(float(c.keep[sample, i]))
                constant = Fraction(0) if c.bias is None else Fraction(float(c.bias[i % channels]))
                scale, shift = Fraction(1), Fraction(0)
                if c.norm is not None:
                    scale, mean, shift = (
                        Fraction(float(v[i % channels])) for v in (c.norm.scale, c.norm.mean, c.norm.bias)
                    )
                    constant -= mean
                if source < 0:
                    constant += sum((w * v for w, v in zip(row, x, strict=True)), Fraction(0))
                else:
                    for j, w in enumerate(row):
                        self.block[first + i][net.slice_of(source).start + j] += keep * scale * w
                self.drive[first + i] += keep * (scale * constant + shift)

    def p(self, a: list[Fraction]) -> list[Fraction]:
        """Pre-activations at given rates."""
        return [
            sum((w * v for w, v in zip(row, a, strict=True)), d) for row, d in zip(self.block, self.drive, strict=True)
        ]

    def equilibrium(self, near: NDArray, relu: bool) -> list[Fraction] | None:
        """a* on the pieces of σ that rates close to it are on, verified; None where those are not found."""
        a = [Fraction(float(v)) for v in near]
        for _ in range(12):
            p = self.p(a)
            M, right = [], []
            for i, (row, d) in enumerate(zip(self.block, self.drive, strict=True)):
                v_th = self.v_th[i]
                on = 0 <= p[i] <= v_th or (relu and p[i] > 0)
                M.append([(i == j) - (w / v_th if on else 0) for j, w in enumerate(row)])
                right.append(d / v_th if on else Fraction(0 if p[i] < 0 else 1))
            solved = solve_exactly(M, right)
            if solved is None:
                return None
            if all(
                v == max(Fraction(0), q / v_th if relu else min(Fraction(1), q / v_th))
                for v, q, v_th in zip(solved, self.p(solved), self.v_th, strict=True)
            ):
                return solved
            a = solved
        return None

    def beta(self, mask: NDArray, g: NDArray) -> list[Fraction] | None:
        """β* = (I − (1/V_th) Bᵀ M)⁻¹ g."""
        n = len(self.block)
        M = [[(i == j) - (self.block[j][i] / self.v_th[j] if mask[j] else 0) for j in range(n)] for i in range(n)]
        return solve_exactly(M, [Fraction(float(v)) for v in g])


def close_to_one(rng: np.random.Generator, dtype: np.dtype) -> float:
    """A γ from 0 to 1 − 1e-12, most of them close to 1."""
    return float(1 - 10.0 ** -rng.uniform(0.05, 12 if dtype == np.float64 else 7))


def network(rng: np.random.Generator, dtype: np.dtype):
    """A small graph frozen on a batch, γ as :func:`close_to_one` draws it where the dtype allows."""
    shapes = [[(1,), (2,), (3,), (1, 2, 2)][rng.integers(4)] for _ in range(rng.integers(1, 4))]
    n = len(shapes)
    ends = [(t - 1, t) for t in range(n)] + [(n - 1, 0)]
    if rng.random() < 0.4:
        ends.append((int(rng.integers(n)), 0))
    names = {-1: "input", **{i: f"a{i + 1}" for i in range(n)}}
    input_shape = (2,)
    connections = []
    for i, (s, t) in enumerate(ends):
        choices = synapses_between(input_shape if s < 0 else shapes[s], shapes[t], False)
        synapse = choices[rng.integers(len(choices))] if rng.random() < 0.4 else choices[0]
        bias, batch_norm, dropout = rng.random(3) < [0.5, 0.2, 0.2]
        ends_of = names[s], names[t]
        connections.append(Connection(f"c{i}", *ends_of, synapse, bool(bias), bool(batch_norm), dropout=0.5 * dropout))
    v_th = float(rng.choice([1.0, 0.7, 2.0]))
    # Of a generator of their own, so that other draws stay as they were; ``Generator.spawn`` is of NumPy 1.25.
    bits = rng.bit_generator
    seeds = bits.seed_seq if hasattr(bits, "seed_seq") else bits._seed_seq
    others = np.random.default_rng(seeds.spawn(1)[0])
    own = [IF(float(v)) if v else None for v in others.choice([0.0, 1.0, 0.7, 2.0], n)]
    net = Network(
        input_shape,
        tuple(Population(names[i], shape, own[i]) for i, shape in enumerate(shapes)),
        tuple(connections),
        Readout(names[n - 1], Dense(shapes[-1], (2,))),
        IF(v_th),
    )
    params = net.init(rng)
    x = rng.normal(0.5, 1, (int(rng.integers(1, 4)), *input_shape)) * 10.0 ** rng.uniform(-3, 1)
    kind = rng.integers(3)
    for c, (s, _) in zip(connections, ends, strict=True):
        if s >= 0 and kind == 1 and isinstance(c.synapse, Dense):
            # The same on both sides as far as shapes allow: norms multiply without loss.
            params[f"{c.name}.weight"] = np.eye(*params[f"{c.name}.weight"].shape) * rng.choice([-1, 1])
        if c.batch_norm:
            params[f"{c.name}.running_var"] = rng.uniform(0.5, 2, params[f"{c.name}.running_var"].shape)
            params[f"{c.name}.running_mean"] = rng.normal(0, 0.5, params[f"{c.name}.running_mean"].shape)
        if c.bias:
            params[f"{c.name}.bias"] = rng.normal(0, 0.5, params[f"{c.name}.bias"].shape)
    params = {name: np.asarray(value, dtype) for name, value in params.items()}
    x = x.astype(dtype)
    seed = int(rng.integers(2**32))
    training = bool(rng.random() < 0.5)

    def frozen():
        return freeze(net, params, x, training=training, rng=np.random.default_rng(seed))

    aim = close_to_one(rng, dtype)
    first = next(c for c, (s, t) in zip(connections, ends, strict=True) if s >= t)
    feedback = [c for c, (s, t) in zip(connections, ends, strict=True) if s >= t]
    gamma = contraction_bound(frozen()).upper
    for c in feedback:
        name = f"{c.name}.weight" if c.synapse.weight_shape else f"{c.name}.bn_weight"
        if name in params and 1e-9 < gamma < 1e9:
            params[name] = np.asarray(params[name] * dtype.type(aim / gamma), dtype)
    if kind == 2 and first.synapse.weight_shape:
        # A drive that keeps most neurons on σ's slope, where the system is as hard as γ says.
        for c in connections:
            if c.bias:
                params[f"{c.name}.bias"] = np.abs(params[f"{c.name}.bias"]) * dtype.type(1 - aim)
        x = x * dtype.type(1 - aim)
    return frozen(), x


def judge_network(rng: np.random.Generator) -> list[tuple[str, float, float, float]]:
    """(what, γ, certified, true error) for a* and β of one network by every solver."""
    with warnings.catch_warnings():
        # Networks are drawn that diverge, and then normalise what has no digits left.
        warnings.filterwarnings("ignore", "batch normalisation of connection", RuntimeWarning)
        return list(_judge_network(rng))


def _judge_network(rng: np.random.Generator) -> Iterator[tuple[str, float, float, float]]:
    dtype = np.dtype(rng.choice(["float32", "float64"]))
    frozen, x = network(rng, dtype)
    gamma = contraction_bound(frozen).value
    relu = bool(rng.random() < 0.3)
    state = find_equilibrium(
        frozen,
        x,
        method=str(rng.choice(["iterate", "anderson", "newton"])),
        sigma="relu" if relu else "clip",
        tol=float(10.0 ** -rng.uniform(2, 13)),
        max_iter=int(rng.choice([3, 60])),
        allow_unconverged=True,
    )

    def judged(what: str, certified: NDArray, found: NDArray, truth: list[Fraction] | None):
        if truth is not None and np.all(np.isfinite(found)):
            for i in range(len(frozen.network.populations)):
                place = frozen.network.slice_of(i)
                yield what, gamma, float(certified[i]), distance(found[place], truth[place])

    exact = [Exact(frozen, state.x_mean, b) for b in range(len(x))]
    for b, sample in enumerate(exact):
        yield from judged("a*", state.errors[b], state.a[b], sample.equilibrium(state.a[b], relu))
    if relu:
        return
    d_logits = rng.normal(size=(len(x), 2)).astype(dtype)
    g, _ = frozen.read_out_pull_back(state, d_logits)
    mask = linearise(frozen, state.a, frozen.drive(state.x_mean)).slope > 0
    for method in HONEST:
        tol, most = float(10.0 ** -rng.uniform(1, 13)), int(rng.choice([2, 40]))
        back = backward(frozen, state, d_logits, solver=method, tol=tol, max_iter=most, allow_unconverged=True)
        for b, sample in enumerate(exact):
            yield from judged(method, back.errors[b], back.beta[b], sample.beta(mask[b], g[b]))


def nasty_system(rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """J (n, n) and b (n,): random, singular, nearly singular, non-normal, tiny, huge, expanding, nilpotent, zero."""
    n = int(rng.integers(1, 7))
    J = rng.normal(size=(n, n)) / np.sqrt(n)
    kind = rng.integers(8)
    if kind == 0:  # nearly or just singular
        Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        values = rng.uniform(-0.9, 0.9, n)
        values[0] = 1 - rng.choice([0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3])
        J = Q @ np.diag(values) @ Q.T
    elif kind == 1:  # a whole number of them exactly singular
        J = np.round(2 * J) / 2
        J[0] = np.eye(n)[0]
    elif kind == 2:  # strongly non-normal
        J = np.triu(rng.normal(size=(n, n))) * 10.0 ** rng.uniform(0, 8)
        J[range(n), range(n)] = rng.uniform(-0.9, 0.9, n)
    elif kind == 3:  # expanding
        J *= 10.0 ** rng.uniform(0, 3)
    elif kind == 4:
        J *= 1 - 10.0 ** -rng.uniform(1, 12)
        J /= max(np.linalg.norm(J, 2), 1e-300)
    elif kind == 5:
        J *= 10.0 ** -rng.uniform(0, 200)
    b = rng.normal(size=n) * 10.0 ** (rng.choice([0, 0, 0, -300, -160, 150, 290]) + rng.uniform(-3, 3))
    if rng.random() < 0.05:
        b[:] = 0
    return J, b


def judge_system(rng: np.random.Generator) -> list[tuple[str, str, float, float, float]]:
    """(method, status, tolerance, true relative residual, what rounding may add) of a nasty system by every solver."""
    dtype = np.dtype(rng.choice(["float32", "float64"]))
    n_batch = int(rng.integers(1, 4))
    J, b = nasty_system(rng)
    limit = float(np.finfo(dtype).max) / 1e3
    J, b = np.clip(J, -limit, limit).astype(dtype), np.clip(b, -limit, limit).astype(dtype)
    batch = np.stack([b * dtype.type(2.0**-k) for k in range(n_batch)])
    found = []
    for method in HONEST:
        tol = float(10.0 ** -rng.uniform(1, 15 if dtype == np.float64 else 6))
        with np.errstate(all="ignore"):
            solution = solve(method, lambda v: np.einsum("ij,bj->bi", J, v), batch, tol=tol, max_iter=60)
        if not solution.converged:
            found.append((method, solution.status, tol, np.nan, np.nan))
            continue
        exact = fractions(J)
        for x, right in zip(solution.x, batch, strict=True):
            xs, rights = ([Fraction(float(v)) for v in part] for part in (x, right))
            terms = [
                [r, -own, *(w * v for w, v in zip(row, xs, strict=True))]
                for row, r, own in zip(exact, rights, xs, strict=True)
            ]
            left, sizes = [sum(row) for row in terms], [sum(map(abs, row)) for row in terms]
            size = max(map(abs, rights))
            if size == 0:
                found.append((method, "converged", tol, 0.0 if not any(left) else np.inf, 0.0))
                continue
            relative, rounding = (float(np.sqrt(sum(float(v / size) ** 2 for v in part))) for part in (left, sizes))
            norm = float(np.sqrt(sum(float(v / size) ** 2 for v in rights)))
            grain = float(np.finfo(dtype).smallest_subnormal) / float(size) * len(b) ** 2
            off = (len(b) + 4) * float(np.finfo(dtype).eps) * rounding / norm + grain
            found.append((method, "converged", tol, relative / norm, off))
    return found


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ratios, infinite, violated = collections.defaultdict(list), collections.Counter(), 0
    for i in range(args.number):
        for _, gamma, certified, error in judge_network(np.random.default_rng([args.seed, 0, i])):
            decade = int(min(12, -np.log10(max(1 - gamma, 1e-13)))) if gamma < 1 else 99
            violated += not certified >= error
            if np.isinf(certified):
                infinite[decade] += 1
            elif error > 0:
                ratios[decade].append(certified / error)
    total = sum(map(len, ratios.values())) + sum(infinite.values())
    print(f"{args.number} networks, {total} certificates, certified below true error: {violated}")
    print("1 - gamma     certified   infinite   median certified/true")
    for decade in sorted({*ratios, *infinite}):
        median = statistics.median(ratios[decade]) if ratios[decade] else float("nan")
        name = "gamma >= 1" if decade == 99 else f"1e-{decade} .. "
        print(f"{name:<12}{len(ratios[decade]):>11}{infinite[decade]:>11}{median:>15.3g}")
    statuses, wrong = collections.Counter(), 0
    for i in range(args.number):
        for method, status, tol, relative, off in judge_system(np.random.default_rng([args.seed, 1, i])):
            statuses[method, status] += 1
            wrong += status == "converged" and not relative <= tol * (1 + 1e-6) + off
    print(f"\n{args.number} systems, called converged with a true residual above tolerance and rounding: {wrong}")
    for (method, status), count in sorted(statuses.items()):
        print(f"{method:<12} {status:<18}{count:>8}")


if __name__ == "__main__":
    main()
