"""What is certified bounds the true error, and what is called converged solves the equation: against exact rationals.

``python tests/trust.py`` draws thousands of the same systems.
"""

from dataclasses import replace
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from graphs import cases
from hypothesis import given
from hypothesis import strategies as st
from theorems import dense_network, system_of
from trust import HONEST, Exact, judge_network, judge_system, solve_exactly

from ide_ref import IF, backward, build, certificates, find_equilibrium, freeze, simulate
from ide_ref.authors import Profile, edited
from ide_ref.certificates import Near, certified, contraction_bound, norm_above, resolved
from ide_ref.maps import AffineMap
from ide_ref.norms import Norm
from ide_ref.solvers import NotConverged, accept, norms, solve

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds)
def test_no_certified_error_is_below_the_true_one(seed):
    for what, gamma, bound, error in judge_network(np.random.default_rng(seed)):
        assert bound >= error, (what, gamma, bound, error)


@given(seed=seeds)
def test_what_is_called_converged_solves_the_equation(seed):
    for method, status, tol, relative, rounding in judge_system(np.random.default_rng(seed)):
        if status == "converged":
            assert relative <= tol * (1 + 1e-6) + rounding, method


def one_neuron(weight: float, dtype):
    """One neuron that feeds itself, at rest in the middle of σ's slope."""
    network = build("1 (F1)", input_shape=(1,), n_classes=2, neuron=IF(1.0), batch_norm=False, restriction=None)
    params = network.init(np.random.default_rng(0), dtype=dtype)
    params["feedback.weight"] = np.full((1, 1), weight, dtype)
    params["input.bias"] = np.full(1, 0.3 * (1 - weight), dtype)
    params["input.weight"] = np.zeros((1, 1), dtype)
    return freeze(network, params)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("method", HONEST)
def test_one_neuron_close_to_gamma_one(method, gap, dtype):
    """β = 0.7/(1 − w) by hand: γ comes closer to 1 than a residual can be told from its own rounding."""
    weight = float(dtype(1 - gap))
    frozen = one_neuron(weight, dtype)
    state = find_equilibrium(frozen, np.zeros((1, 1), dtype), method="newton", tol=1e-3, allow_unconverged=True)
    d_logits = np.array([[0.7, 0.0]], dtype)
    back = backward(frozen, state, d_logits, solver=method, tol=1e-6, max_iter=50, allow_unconverged=True)
    g, _ = frozen.read_out_pull_back(state, d_logits)
    if weight == 1.0:
        assert np.all(np.isinf(back.certificate))
        assert back.why_not == "gamma, the block radius of the norms, is at least 1 (1), and (CERT) asks for less"
        return
    # What is known of γ itself costs a few roundings.
    assert weight <= contraction_bound(frozen).upper <= weight * (1 + 2.0**-49)
    exact = Fraction(float(g[0, 0])) / (1 - Fraction(weight))
    assert back.certificate[0] >= abs(Fraction(float(back.beta[0, 0])) - exact)
    assert np.isfinite(back.certificate[0])
    assert back.why_not == ""


@given(n=st.integers(1, 5), seed=seeds, gap=st.floats(-12, -0.3), beyond=st.booleans(), size=st.floats(-323, 290))
def test_the_last_line_of_the_certificate_is_verified(n, seed, gap, beyond, size):
    """resolved is at least (I − N)⁻¹ d, in rational arithmetic, up to spectral radii that touch 1; not beyond."""
    rng = np.random.default_rng(seed)
    N = rng.random((n, n)) * (rng.random((n, n)) < 0.7)
    radius = np.max(np.abs(np.linalg.eigvals(N)))
    if radius > 1e-8:
        N *= (1 + 10**gap if beyond else 1 - 10**gap) / radius
    d = rng.random((2, n)) * (rng.random((2, n)) < 0.7) * 10.0**size
    found = resolved(N, d)
    M = [[(i == j) - Fraction(float(N[i, j])) for j in range(n)] for i in range(n)]
    for row, bound in zip(d, found, strict=True):
        exact = solve_exactly(M, [Fraction(float(v)) for v in row])
        if exact is None or min(exact) < 0:
            assert np.all(np.isinf(bound)) or not any(row)
        elif np.all(np.isfinite(bound)):
            assert all(Fraction(float(b)) >= e for b, e in zip(bound, exact, strict=True))
            if gap > -2:  # what a solver left of a 0 is rounding of the others
                exact = np.array(exact, float)
                assert np.all(bound <= exact * (1 + 1e-9) + 1e-14 * exact.max() + 1e-320)
    if beyond and radius > 1e-8:
        assert np.all(np.isinf(found))
    elif n == 1:
        assert np.all(np.isfinite(found))
        np.testing.assert_array_equal(found[:, 0], certified(d[:, 0], float(N[0, 0])))


def test_nothing_is_certified_at_and_beyond_one():
    """Without a warning, which would be an error here."""
    for gamma in (1.0, 1.5, np.inf, np.nan):
        assert np.all(np.isinf(certified(np.array([0.5, 1e-300]), gamma)))
    assert np.all(np.isinf(certified(np.array([np.inf, np.nan]), 0.5)))
    assert np.all(np.isinf(resolved(np.array([[0.5, np.inf], [0.0, 0.5]]), np.ones((1, 2)))))
    # Each sample by itself, and beyond the largest number without a warning.
    bounds = resolved(np.diag([0.5, 0.25]), np.array([[1.5e308, 1.5e308], [0.0, np.inf], [0.0, 0.0], [1.0, 3.0]]))
    np.testing.assert_allclose(bounds, [[np.inf, np.inf], [np.inf, np.inf], [0, 0], [2, 4]], rtol=1e-14)
    large = Near(np.array([[1.5e308], [0.0], [np.nan], [3.0]]), np.array([[1.5e308], [0.0], [0.0], [4.0]])).norm()
    np.testing.assert_allclose(large, [np.inf, 0, np.inf, 7], rtol=1e-14)
    for value in (1e308, np.inf, np.nan):
        assert Near(np.array([[value, value]]), np.array([[value, 0.0]])).norm() == np.inf
        assert norm_above(np.array([[value, 1.7e308]])) == np.inf
    for N, d in (([[0.5, 1e300], [1e300, 0.5]], 1e300), ([[0.5, 0.0], [0.0, 0.5]], 1.7e308), ([[0.0]], np.inf)):
        assert np.all(np.isinf(resolved(np.array(N), np.full((1, len(N)), d))))
    assert certified(np.array([0.5]), 0.5)[0] == pytest.approx(1.0, rel=1e-14)
    assert certified(np.array([0.5]), 0.5)[0] >= 1.0


def assert_covered(value, error, exact):
    """Numbers are off by no more than the errors that are stated of them."""
    for found, off, truth in zip(value, error, exact, strict=True):
        assert abs(Fraction(float(found)) - truth) <= Fraction(float(off))


def test_samples_are_certified_some_at_a_time(monkeypatch):
    frozen = one_neuron(0.5, np.float64)
    x, a = np.zeros((5, 1)), np.random.default_rng(0).random((5, 1))
    at_once = certificates.defects(frozen, x, a)
    monkeypatch.setattr(certificates, "_CHUNK", 4)
    # Of two numbers each, the neuron's and its input's.
    assert certificates.chunks(frozen, 5) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    np.testing.assert_array_equal(certificates.defects(frozen, x, a), at_once)
    monkeypatch.setattr(certificates, "_CHUNK", 1)
    assert certificates.chunks(frozen, 2) == [slice(0, 1), slice(1, 2)]


@given(seed=seeds, size=st.floats(-320, 300))
def test_running_errors_cover_their_rounding(seed, size):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 1, 6)) * 10.0**size
    factor, divisor = rng.normal(size=6), float(rng.uniform(0.1, 3))
    near = Near(x, np.abs(x) * 1e-3).plus(Near.exactly(y)).times(factor).over(divisor)
    for shift in (-1, 1):  # at the ends of what is stated of x
        starts = [Fraction(float(v)) + shift * Fraction(float(abs(v) * 1e-3)) for v in x[0]]
        exact = [
            (u + Fraction(float(v))) * Fraction(float(c)) / Fraction(divisor)
            for u, v, c in zip(starts, y[0], factor, strict=True)
        ]
        assert_covered(near.value[0], near.error[0], exact)
    # One operation each on given numbers, where its own rounding is all there is.
    pairs = (
        (Near.exactly(x).plus(Near.exactly(y)), lambda u, v, _: u + v),
        (Near.exactly(x).times(factor), lambda u, _, c: u * c),
        (Near.exactly(x).over(divisor), lambda u, _, __: u / Fraction(divisor)),
    )
    for found, operation in pairs:
        exact = [operation(*(Fraction(float(v)) for v in given)) for given in zip(x[0], y[0], factor, strict=True)]
        assert_covered(found.value[0], found.error[0], exact)
    squares = sum(Fraction(float(v)) ** 2 for v in x[0])
    bound = norm_above(np.abs(x))[0]
    assert np.isinf(bound) or Fraction(float(bound)) ** 2 >= squares


@given(case=cases(), seed=seeds)
def test_the_running_error_of_a_sweep_covers_its_rounding(case, seed):
    """p of every neuron at any rates, through every synapse, normalisation and mask, against rational arithmetic."""
    state = find_equilibrium(case.frozen, case.x, max_iter=1, allow_unconverged=True)
    a = np.random.default_rng(seed).random(state.a.shape)
    near = certificates.pre_activations(case.frozen, state.x_mean, a)
    value, error = (np.concatenate(part, axis=1) for part in zip(*near, strict=True))
    assert_covered(value[0], error[0], Exact(case.frozen, state.x_mean, 0).p([Fraction(float(v)) for v in a[0]]))
    # Of the order of the rounding, not a bound for its own sake.
    largest = max([1.0, *(np.abs(m.norm.scale).max() for m in case.frozen.maps if m.norm)])
    assert np.all(error <= 1e-12 * largest * (1 + np.abs(value).max()))


@given(n=st.integers(2, 40), seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_the_running_error_of_a_product_covers_its_rounding_both_ways(n, seed, dtype):
    network = build(f"{n} (F{n})", input_shape=(1,), n_classes=2, neuron=IF(1.0), batch_norm=False, restriction=None)
    frozen = freeze(network, network.init(np.random.default_rng(seed), dtype=dtype))
    W = frozen.maps[1].taps[0].T
    s = np.random.default_rng(seed).normal(size=n)
    feedback = certificates.Map(frozen.maps[1], slice(None))
    for found, matrix in ((feedback.output(Near.exactly(s[None])), W), (feedback.adjoint(Near.exactly(s[None])), W.T)):
        exact = [
            sum((Fraction(float(w)) * Fraction(float(v)) for w, v in zip(row, s, strict=True)), Fraction(0))
            for row in matrix
        ]
        assert_covered(found.value[0], found.error[0], exact)


@given(case=cases(contractive=True))
def test_every_graph_below_cond_has_certificates(case):
    """A finite certificate for a* and β, of every population and so of the sources."""
    state = find_equilibrium(case.frozen, case.x)
    assert np.all(np.isfinite(state.errors))
    assert state.errors.shape == (len(case.x), len(case.network.populations))
    # Of all feedback sources together; (CERT) bounds the error of each population.
    on_sources = np.linalg.norm(state.errors[:, list(case.network.feedback_sources)], axis=1)
    np.testing.assert_allclose(state.certificate, on_sources, rtol=1e-9)
    gamma = contraction_bound(case.frozen)
    assert 0 <= gamma.value <= gamma.upper < 1
    assert gamma.why_not == ""


@given(case=cases(contractive=True, own_neurons=True), size=st.sampled_from([1e-3, 1.0]), seed=seeds)
def test_a_known_error_of_beta_is_within_its_bounds(case, size, seed):
    """Of every population, each with its own V_th; and what is solved to rounding is certified to little more."""
    rng = np.random.default_rng(seed)
    state = find_equilibrium(case.frozen, case.x)
    back = backward(case.frozen, state, rng.normal(size=(len(case.x), 3)), solver="direct")
    places = [case.network.slice_of(i) for i in range(len(case.network.populations))]
    assert np.all(back.errors <= 1e-9 * (1 + np.abs(back.beta).max()))
    off = size * rng.normal(size=back.beta.shape)
    found = replace(back, beta=back.beta + off)
    for i, place in enumerate(places):
        known = np.linalg.norm(off[:, place], axis=1)
        assert np.all(known <= found.errors[:, i] + back.errors[:, i])


@given(case=cases(dtype=np.float64), seed=seeds)
def test_a_radius_that_excludes_certificates_only_saves_time(case, seed):
    """The same errors, finite or not, as from norms that are bounds throughout."""
    state = find_equilibrium(case.frozen, case.x, max_iter=20, allow_unconverged=True)
    d_logits = np.random.default_rng(seed).normal(size=(len(case.x), 3))
    found = []
    for beyond in (certificates.BEYOND, np.inf):
        with mock.patch.object(certificates, "BEYOND", beyond):
            back = backward(case.frozen, state, d_logits, solver="direct", allow_unconverged=True)
            found.append((replace(state).errors, back.errors, certificates.why_not(case.frozen) == ""))
    for quick, thorough in zip(*found, strict=True):
        np.testing.assert_array_equal(quick, thorough)
    if certificates.block_radius(case.frozen) >= certificates.BEYOND:
        assert not found[1][2]


@pytest.mark.parametrize(("weight", "asked"), [(0.5, True), (1.0, True), (1.005, True), (1.02, False), (np.inf, False)])
def test_bounds_of_norms_take_no_time_where_they_promise_nothing(weight, asked, monkeypatch):
    """A large convolution's takes a hundred times as long as its value."""
    problem = one_neuron(0.5, np.float64)
    state = find_equilibrium(problem, np.zeros((1, 1)))
    back = backward(problem, state, np.ones((1, problem.network.n_classes)))
    asks = []
    monkeypatch.setattr(AffineMap, "operator_norm", weight)
    monkeypatch.setattr(AffineMap, "norm_bound", property(lambda m: asks.append(m) or Norm(weight, weight)))
    for found in (replace(state), replace(back)):
        assert np.all(np.isfinite(found.errors)) == (weight < 1)
        assert bool(asks) == asked
        asks.clear()
    assert (certificates.why_not(problem) == "") == (weight < 1)
    assert bool(asks) == asked


def test_why_nothing_is_certified():
    problem = one_neuron(2.0, np.float64)
    state = find_equilibrium(problem, np.zeros((1, 1)), method="newton", allow_unconverged=True)
    assert "at least 1 (2), and (CERT) asks for less" in state.why_not
    assert contraction_bound(problem).why_not == "gamma is 2, and (CERT) asks for less than 1"
    net = dense_network(IF(1.0), [1, 1], [(-1, 0), (0, 1), (0, 0), (1, 1)])
    params = net.init(np.random.default_rng(0)) | {"c2.weight": np.full((1, 1), 1.5), "c3.weight": np.full((1, 1), 0.5)}
    assert "block radius of the norms, is at least 1 (1.5)" in certificates.why_not(freeze(net, params))
    assert certificates.Contraction(1.0, 1.0).why_not == "gamma is 1, and (CERT) asks for less than 1"
    touching = certificates.Contraction(1 - 1e-16, 1 + 1e-15)
    assert "which its own error of 1.2e-15 does not tell from 1" in touching.why_not


@pytest.mark.parametrize("method", HONEST)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_system_is_not_solved_by_growing_x(method, dtype):
    """J = I has no solution; x that outgrows b until b + J x − x rounds to 0 is none."""
    for J in (np.eye(1), np.eye(3), np.full((2, 2), 0.5)):
        b = np.ones((2, len(J)), dtype)
        solution = solve(method, lambda v, J=J.astype(dtype): v @ J.T, b, tol=1e-3, max_iter=300)
        assert solution.status != "converged", (J, solution)


def test_a_diverging_relu_network_is_not_at_rest():
    """Nor is one whose rates grow by 1 a step, which after 100 steps is little beside what they are."""
    for weight, tol in ((2.0, None), (1.5, 1e-6), (1.0, 1e-2)):
        for dtype in (np.float32, np.float64):
            frozen = one_neuron(weight, dtype)
            frozen = freeze(frozen.network, {**frozen.params, "input.bias": np.ones(1, dtype)})
            options = {"sigma": "relu", "tol": tol, "max_iter": 200}
            for method in ("iterate", "anderson", "newton"):
                if weight > 1 and method != "iterate":
                    continue
                with pytest.raises(NotConverged):
                    find_equilibrium(frozen, np.zeros((1, 1), dtype), method=method, **options)
            state = find_equilibrium(frozen, np.zeros((1, 1), dtype), allow_unconverged=True, **options)
            assert state.status == ("diverged" if weight > 1 else "out of iterations")


def test_divergence_tells_when_it_showed():
    """Three steps towards the solution, then away from it: |J| = 2 along a direction that b hardly has."""
    J = np.diag([0.1, 2.0])
    solution = solve("fixed_point", lambda v: v @ J.T, np.array([[1.0, 1e-6]]), tol=1e-12, max_iter=200)
    assert solution.status == "diverged"
    least = int(np.argmin(solution.history))
    assert least > 2
    assert solution.diverged_at == least + 1


def test_statuses_of_the_judge():
    x, b = np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]])
    y = x - b
    assert accept(x, y, b, 1e-9).status == "converged"
    assert accept(x, y, b, 1e-17).status == "lost to rounding"
    assert accept(x + 1, y, b, 1e-9).status == "out of iterations"
    assert accept(x + 1, y, b, 1e-9, stalled=True).status == "stagnated"
    assert accept(x + 1, y, b, 1e-9, singular=True).status == "singular"
    assert accept(1e17 * x, 1e17 * x, b, 1e-9).status == "singular"
    assert accept(np.nan * x, y, b, 1e-9).status == "diverged"
    assert accept(x + 1, y, b, 1e-9, history=[1.0] * 8 + [2.0]).status == "diverged"
    assert accept(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)), 0.0).status == "converged"
    assert accept(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)), 0.0).status == "converged"


@given(n=st.integers(0, 9), size=st.floats(-320, 305), seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_norms_of_rows_of_any_size(n, size, seed, dtype):
    with np.errstate(over="ignore", under="ignore"):
        x = (np.random.default_rng(seed).normal(size=(3, n)) * 10.0**size).astype(dtype)
    x = x[np.all(np.isfinite(x), axis=1)]
    exact = [sum(Fraction(float(v)) ** 2 for v in row) for row in x]
    for found, square in zip(norms(x), exact, strict=True):
        if np.isinf(found):
            assert square > (Fraction(float(np.finfo(dtype).max)) / 2) ** 2
        else:
            slack = Fraction(float(4 * np.finfo(dtype).eps)) * (n + 2)
            grain = Fraction(float(np.finfo(dtype).smallest_subnormal)) * (n + 2)
            assert max(0, Fraction(float(found)) - grain) ** 2 <= square * (1 + slack) ** 2
            assert (Fraction(float(found)) + grain) ** 2 * (1 + slack) ** 2 >= square
    assert np.isnan(norms(np.full((1, 2), np.nan, dtype))[0])
    assert np.isinf(norms(np.array([[np.inf, 1.0]], dtype))[0])


@pytest.mark.parametrize("method", HONEST)
@pytest.mark.parametrize(("dtype", "sizes"), [(np.float64, (-290, -170, 150, 300)), (np.float32, (-30, -24, 20, 36))])
def test_tiny_and_huge_right_hand_sides_are_solved(method, dtype, sizes):
    J = np.array([[0.0, 0.5], [-0.25, 0.1]])
    for size in sizes:
        b = (np.array([[1.0, -2.0], [0.5, 0.25]]) * 10.0**size).astype(dtype)
        solution = solve(method, lambda v: v @ J.T.astype(v.dtype), b, tol=1e-5, max_iter=100)
        assert solution.converged, (size, solution.status)
        exact = np.linalg.solve(np.eye(2) - J.astype(dtype), b.T.astype(np.float64)).T
        np.testing.assert_allclose(solution.x, exact, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_a_singular_system_of_any_size_is_called_so(size):
    for method in ("direct", "gmres"):
        assert solve(method, lambda v: v, np.full((2, 1), size), tol=1e-8).status == "singular"


@pytest.mark.parametrize("method", HONEST)
def test_right_hand_sides_of_other_types(method):
    b = np.array([[1.0, 2.0]])
    swapped = b.astype(b.dtype.newbyteorder())
    solution = solve(method, lambda v: 0.5 * v, swapped, tol=1e-9)
    np.testing.assert_allclose(solution.x, 2 * b)
    assert solution.x.dtype == np.float64
    # Where no kernel could read it: one byte off, and every other number of a row.
    unaligned = np.frombuffer(b"-" + b.tobytes(), np.uint8)[1:].view(np.float64).reshape(b.shape)
    for laid in (unaligned, np.repeat(b, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(solve(method, lambda v: 0.5 * v, laid, tol=1e-9).x, solution.x)
    for dtype in (np.float16, np.longdouble):
        with pytest.raises(ValueError, match=r"b is (float16|longdouble|float128); expected float32 or float64"):
            solve(method, lambda v: v / 2, b.astype(dtype), tol=1e-3)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="b has values that are NaN or infinite; expected finite ones"):
            solve(method, lambda v: v / 2, np.full((1, 2), value), tol=1e-3)


def test_beta_of_a_network_that_left_the_range_is_no_solution():
    """The right-hand side of (BETA) may itself overflow, on its way back from a population that sends no feedback."""
    network = dense_network(IF(1.0), [1, 1], [(-1, 0), (0, 0), (0, 1)])
    params = {name: np.zeros_like(value) for name, value in network.init(np.random.default_rng(0), dtype="f4").items()}
    params["c2.weight"][:], params["readout.weight"][:] = 1e25, 1e20
    frozen = freeze(network, params)
    rates = simulate(frozen, np.zeros((1, 1), np.float32), 4)
    with np.errstate(over="ignore"), pytest.raises(NotConverged, match="right-hand side has left the range of float32"):
        backward(frozen, rates, np.ones((1, 2), np.float32))


@given(case=cases(), seed=seeds)
def test_the_sizes_of_all_terms_are_nowhere_smaller_than_their_sum(case, seed):
    x_mean = find_equilibrium(case.frozen, case.x, max_iter=1, allow_unconverged=True).x_mean
    a = np.random.default_rng(seed).normal(size=(len(case.x), case.network.state_size))
    found = certificates.pre_activations(case.frozen, x_mean, a)
    sizes = certificates.pre_activations(case.frozen, np.abs(x_mean), np.abs(a), absolute=True)
    for p, size in zip(found, sizes, strict=True):
        assert np.all(np.abs(p.value) <= size.value * (1 + 1e-12))
        assert np.all(p.error <= size.error * (1 + 1e-12))


def test_the_sizes_of_all_terms_are_no_larger_than_they_are():
    system = system_of(IF(), [3, 2], [(-1, 0), (0, 1), (1, 0)], np.random.default_rng(1), 0.9)
    x, a = np.abs(system.x), np.random.default_rng(0).random((2, 5))
    sizes = certificates.pre_activations(system.frozen, x, a, absolute=True)
    F, b, B = (np.abs(part) for part in (system.F, system.b, system.forward + system.feedback))
    np.testing.assert_allclose(np.concatenate([p.value for p in sizes], axis=1), x @ F.T + b + a @ B.T, rtol=1e-12)


@pytest.mark.parametrize("method", ["errors", "certificate"])
def test_samples_coupled_through_batch_statistics_have_no_certificate(method):
    """Also where other connections, the feedback among them, couple nothing."""
    network = edited(
        build("4-3 (F4)", input_shape=(3,), n_classes=2, neuron=IF(1.0)), Profile(batch_statistics_in_beta=True)
    )
    rng = np.random.default_rng(0)
    params, x = network.init(rng), rng.normal(size=(5, 3))
    params = {name: value / 4 if name.endswith(("bn_weight", "alpha")) else value for name, value in params.items()}
    frozen = freeze(network, params, x, training=True, rng=rng)
    rates = simulate(frozen, x, 20)
    result = backward(frozen, rates, rng.normal(size=(5, 2)), solver="gmres")
    star = find_equilibrium(frozen, x, method="newton", allow_unconverged=True)
    for found in (result, star):
        assert np.all(np.isinf(getattr(found, method)))
        assert "coupled through its statistics" in found.why_not
    # With the running statistics the same network has.
    plain = freeze(edited(network, Profile()), params, x, training=True, rng=rng)
    assert np.all(np.isfinite(getattr(find_equilibrium(plain, x), method)))
