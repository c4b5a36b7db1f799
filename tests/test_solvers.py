"""All solvers against a dense solve, and their honesty about systems they cannot solve."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref.solvers import SOLVERS, NotConverged, Verdict, _scale, accept, broyden, hopeless, norms, require, solve

HONEST = [name for name in SOLVERS if name != "damped"]
solvers = pytest.mark.parametrize("method", HONEST)
seeds = st.integers(0, 2**32 - 1)


def system(rng, n_batch, n, norm, *, n_active=None):
    """Matrices J (B, n, n) of 2-norm ``norm``, with zero columns beyond the active, and b (B, n)."""
    J = rng.normal(size=(n_batch, n, n))
    J[:, :, n if n_active is None else n_active :] = 0
    size = np.linalg.norm(J, 2, axis=(1, 2))[:, None, None]
    return norm * J / np.where(size > 0, size, 1), rng.normal(size=(n_batch, n))


def product(J):
    return lambda v: np.einsum("bij,bj->bi", J, v)


def exact(J, b):
    return np.stack([np.linalg.solve(np.eye(len(rhs)) - A, rhs) for A, rhs in zip(J, b, strict=True)])


@solvers
@given(
    n_batch=st.integers(1, 5),
    n=st.integers(1, 12),
    gamma=st.floats(0.0, 0.9),
    seed=seeds,
    dtype=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
def test_contractions_are_solved_by_all(method, n_batch, n, gamma, seed, dtype, data):
    """Each sample to its own size, and what is 0 at once."""
    rng = np.random.default_rng(seed)
    J, b = system(rng, n_batch, n, gamma, n_active=data.draw(st.integers(0, n)))
    sizes = rng.choice([1.0, 1e-7, 1e3, 0.0], (n_batch, 1), p=[0.7, 0.1, 0.1, 0.1])
    J, b = J.astype(dtype), (sizes * b).astype(dtype)
    x0 = data.draw(st.sampled_from([None, (sizes * rng.normal(size=b.shape)).astype(dtype)]))
    for array in (J, b):
        array.flags.writeable = False
    tol, slack = (1e-11, 1e-9) if dtype == np.float64 else (1e-5, 1e-3)
    solution = solve(method, product(J), b, tol=tol, max_iter=2000, x0=x0)
    assert solution.converged
    assert (solution.method, solution.x.dtype) == (method, dtype)
    error = norms(solution.x - exact(J.astype(float), b.astype(float)))
    assert np.all(error <= slack * norms(b))
    residual = norms(product(J.astype(float))(solution.x.astype(float)) + b - solution.x)
    rounding = 20 * np.finfo(dtype).eps * (norms(b) + norms(solution.x))
    assert np.all(np.abs(solution.residual - residual) <= 1e-3 * residual + rounding)
    assert np.all(solution.residual <= tol * norms(b))
    np.testing.assert_allclose(solution.relative * norms(b), solution.residual, rtol=1e-5)
    assert (solution.relative <= tol).all()
    assert require(solution, "test") is solution


@pytest.mark.parametrize("method", ["gmres", "direct", "anderson"])
def test_spectral_radius_above_one_is_no_obstacle(method):
    J, b = system(np.random.default_rng(2), 1, 6, 5.0)
    assert np.abs(np.linalg.eigvals(J[0])).max() > 1.2
    solution = solve(method, product(J), b, tol=1e-10, max_iter=2000)
    assert solution.converged
    np.testing.assert_allclose(solution.x, exact(J, b), atol=1e-8)


@pytest.mark.parametrize("method", SOLVERS)
def test_what_leaves_the_range_of_the_floats_raises_nothing(method):
    """Too large, no number, too small, whatever NumPy is told to do then."""
    factors = np.array([[1e300], [-1e-300], [0.5]])
    with np.errstate(all="raise"):
        solution = solve(method, lambda v: factors * v * [1.0, -1e10, 1e-10], np.full((3, 3), 1e-20), max_iter=20)
        assert solution.status != "converged" or method == "direct"
        with pytest.raises(NotConverged) as raised:
            require(replace(solution, status="stagnated"), "test")
    assert "stagnated" in str(raised.value)


def test_a_residual_is_hopeless_from_where_rounding_is_as_large_as_b():
    for dtype in (np.float32, np.float64):
        end = 1 / float(np.finfo(dtype).eps)
        assert [hopeless(worst, np.dtype(dtype)) for worst in (end / 2, end, np.nan)] == [False, True, True]


def test_the_plain_iteration_admits_divergence():
    J, b = system(np.random.default_rng(2), 2, 6, 5.0)
    solution = solve("fixed_point", product(J), b, tol=1e-10, max_iter=50)
    assert not solution.converged
    assert (solution.relative > 1).all()
    assert solution.history[-1] > solution.history[0]
    assert (solution.status, solution.diverged_at) == ("diverged", 1)
    with pytest.raises(NotConverged, match=r"\(BETA\): fixed_point stopped after 26 products with .*; diverged"):
        require(solution, "(BETA)")


@solvers
def test_one_bad_sample_is_enough(method):
    """The second sample has no solution: J = I."""
    J = np.stack([0.5 * np.eye(3), np.eye(3)])
    solution = solve(method, product(J), np.ones((2, 3)), tol=1e-8, max_iter=60)
    assert not solution.converged
    assert not (solution.relative[1] <= 1e-8)
    assert solution.status in ("out of iterations", "stagnated", "singular")
    with pytest.raises(NotConverged, match=rf"{solution.status}.*, or pass allow_unconverged=True"):
        require(solution, "test")


@solvers
def test_a_product_of_nan_does_not_count_as_converged(method):
    solution = solve(method, lambda v: np.full_like(v, np.nan), np.ones((2, 3)), tol=1e-8, max_iter=10)
    assert not solution.converged
    with pytest.raises(NotConverged, match=r"relative residual of (inf|1\.00e\+00), "):
        require(solution, "test")


def test_finished_samples_stand():
    """Anderson's method moves no sample that is solved, and solves the others no worse."""
    rng = np.random.default_rng(0)
    J = 0.1 * np.stack([scale * np.linalg.qr(rng.normal(size=(12, 12)))[0] for scale in (0.1, 5.0, 9.0, 0.0)])
    b = rng.normal(size=(4, 12))
    seen = []

    def watched(v):
        seen.append(v.copy())
        return product(J)(v)

    tol = 1e-6
    solution = solve("anderson", watched, b, tol=tol, max_iter=100)
    assert solution.converged
    np.testing.assert_allclose(solution.x, exact(J, b), atol=1e-4)
    n_moved = []
    for i in range(4):
        relative = [norms(b + product(J)(v) - v)[i] / norms(b)[i] for v in seen]
        done = next(k for k, r in enumerate(relative) if r <= tol)
        for v in seen[done:]:
            np.testing.assert_array_equal(v[i], seen[done][i])
        n_moved.append(done)
    assert len(set(n_moved)) >= 3


def test_halved_iteration_has_another_limit():
    J, b = system(np.random.default_rng(0), 3, 6, 0.8)
    solution = solve("damped", product(J), b, tol=1e-14, max_iter=500)
    limit = np.stack([np.linalg.solve(2 * np.eye(6) - A, rhs) for A, rhs in zip(J, b, strict=True)])
    np.testing.assert_allclose(solution.x, limit, atol=1e-12)
    assert not solution.converged
    np.testing.assert_allclose(solution.residual, norms(product(J)(limit) + b - limit), atol=1e-12)


def test_the_fixed_point_is_the_neumann_sum():
    J, b = system(np.random.default_rng(0), 2, 4, 0.9)
    solution = solve("fixed_point", product(J), b, tol=1e-14, max_iter=3)
    expected = b + product(J)(b + product(J)(b + product(J)(b)))
    np.testing.assert_allclose(solution.x, expected, atol=1e-13)
    assert (solution.iterations, solution.n_products) == (3, 4)
    assert len(solution.history) == 3


def test_wrong_arguments():
    with pytest.raises(ValueError, match="solver 'newton' is unknown; expected one of fixed_point, anderson"):
        solve("newton", lambda v: v, np.ones((1, 1)), tol=1e-3)
    b = np.ones((2, 3))
    for wrong, given_as in (
        (None, "NoneType"),
        ([[1.0]], "list"),
        (b[0], r"float64 of shape \(3,\)"),
        (b.astype(int), r"int64 of shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=rf"b is {given_as}; expected an array \(B, n\) of floats"):
            solve("direct", lambda v: v, wrong, tol=1e-3)
        if wrong is not None:
            with pytest.raises(ValueError, match=rf"x0 is {given_as}; expected an array \(B, n\) of floats"):
                solve("direct", lambda v: v, b, tol=1e-3, x0=wrong)
    for x0 in (b[:1], b.astype(np.float32)):
        with pytest.raises(ValueError, match=r"x0 is .*; expected float64 of shape \(2, 3\), as b"):
            solve("direct", lambda v: v, b, tol=1e-3, x0=x0)


@pytest.mark.parametrize("method", SOLVERS)
def test_no_sum_over_nothing_is_asked_of_einsum(method, monkeypatch):
    """NumPy's einsum reads what lies at an empty operand's address, and 0 · NaN is NaN."""
    einsum = np.einsum

    def guarded(pattern, *operands, **options):
        assert all(operand.size for operand in operands), pattern
        return einsum(pattern, *operands, **options)

    monkeypatch.setattr(np, "einsum", guarded)
    b = np.random.default_rng(3).normal(size=(4, 1))
    solution = solve(method, lambda v: 0.5 * v, b, tol=1e-11)
    np.testing.assert_allclose(solution.x, 2 * b if method != "damped" else b * 2 / 3, atol=1e-10)


@solvers
@given(n_batch=st.integers(1, 4), n=st.integers(1, 6), seed=seeds, data=st.data())
def test_the_product_is_asked_of_finite_vectors_alone(method, n_batch, n, seed, data):
    """Samples with nothing to solve, or that have arrived, beside others that go on."""
    J, b = system(np.random.default_rng(seed), n_batch, n, 0.9)
    b *= np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, 1e-9]), min_size=n_batch, max_size=n_batch)))[:, None]

    def checked(v):
        assert np.isfinite(v).all()
        return product(J)(v)

    solution = solve(method, checked, b, tol=1e-10, max_iter=500)
    assert solution.converged
    np.testing.assert_allclose(solution.x, exact(J, b), rtol=0, atol=1e-8)


@solvers
@given(n_batch=st.integers(1, 4), n=st.integers(1, 6), seed=seeds, data=st.data())
def test_samples_solved_together_each_meet_the_tolerance(method, n_batch, n, seed, data):
    J, b = system(np.random.default_rng(seed), n_batch, n, 0.5)
    b *= np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, 1e-3]), min_size=n_batch, max_size=n_batch)))[:, None]
    solution = solve(method, product(J), b, tol=1e-9, max_iter=500, joined=True)
    assert solution.converged
    assert solution.x.shape == b.shape
    assert (solution.relative <= 1e-9).all()
    np.testing.assert_allclose(solution.x, exact(J, b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["fixed_point", "anderson", "broyden", "gmres", "scipy_gmres"])
def test_the_history_ends_where_the_solution_does(method):
    J, b = system(np.random.default_rng(1), 2, 5, 0.7)
    solution = solve(method, product(J), b, tol=1e-8)
    assert solution.history[0] == pytest.approx(1.0 if method != "fixed_point" else solution.history[0])
    assert solution.history[-1] == pytest.approx(solution.relative.max(), rel=1e-3)
    assert solution.history[-1] <= 1e-8 < min(solution.history[:-1])


@pytest.mark.parametrize("method", HONEST)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_of_no_samples_or_unknowns_nothing_is_asked(method, shape):
    for joined in (False, True):
        solution = solve(method, lambda v: 0.5 * v, np.zeros(shape), x0=np.zeros(shape), joined=joined)
        assert (solution.converged, solution.x.shape) == (True, shape)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_worst_of_a_batchs_samples_is_told(order):
    """A sample that is no number, one that outgrew its b, one that rounding hides, one that is merely not there yet."""
    x = np.array([[np.nan], [2.0**52], [1.0], [1.0]])
    b = np.array([[1.0], [1.0], [1.0], [0.5]])
    y = np.array([[0.0], [2.0**51], [2.5e-16], [0.3]])
    for rows, status in (
        ([0, 1, 2, 3], "diverged"),
        ([1, 2, 3], "singular"),
        ([2, 3], "lost to rounding"),
        ([3], "out of iterations"),
    ):
        some = np.array(rows)[order]
        assert accept(x[some], y[some], b[some], 1e-16).status == status
    assert accept(x, y, b, 1e-16, singular=True).status == "singular"
    assert accept(x, y, b, 1e-16, history=[1.0, 2.0]).diverged_at == 2


def test_rounding_is_what_the_judge_s_own_sum_may_lose():
    rng, eps = np.random.default_rng(0), np.finfo(float).eps
    x, y, b = rng.normal(size=(3, 6, 5)) * 10.0 ** rng.uniform(-2, 2, (3, 6, 1))
    np.testing.assert_allclose(accept(x, y, b, 0.0).rounding, eps * (norms(x) + norms(y) + norms(b)), rtol=1e-14)
    zero, one, least = (np.full((1, 4), value) for value in (0.0, 1.0, np.finfo(float).smallest_subnormal))
    assert accept(least, least, zero, 1.0).rounding == [2 * least[0, 0]]
    # Without a residual there is rounding, too, and without an x; but where there is nothing at all there is none.
    assert accept(one, zero, one, 0.0).rounding == [4 * eps]
    assert accept(zero, zero, one, 0.0).rounding == [2 * eps]
    assert accept(zero, zero, zero, 0.0) == Verdict("converged", [0.0], [0.0])
    # Residuals of 6 and 10 eps: four times their rounding is 8.
    for share, status in ((6, "lost to rounding"), (10, "out of iterations")):
        assert accept(np.ones((1, 1)), np.full((1, 1), share * eps), np.ones((1, 1)), 1e-17).status == status
    # Beyond the largest number, without a warning; and what solves an equation without b has not outgrown it.
    assert accept(0.4e308 * one, 0.4e308 * one, 0.4e308 * one, 1.0).rounding == [np.inf]
    assert accept(one, zero, zero, 0.0).status == "out of iterations"


@pytest.mark.parametrize(
    ("history", "at"),
    [
        ([1, 2, 3, 4, 5, 6, 7], None),  # too short to tell
        ([1, 2, 3, 4, 5, 6, 7, 8], 1),
        ([3, 9, 4, 4, 4, 4, 4, 5], 1),
        ([1, 1, 1, 1, 1, 1, 1, 1], None),
        ([5, 4, 3, 2, 1, 2, 3, 6], 5),
        ([6, 5, 4, 3, 2, 1, 3, 7], None),  # it fell for the better half of its way
        ([4, 3, 2, 1, np.inf], 4),
    ],
)
def test_divergence_is_a_residual_that_has_only_grown(history, at):
    verdict = accept(np.ones((1, 1)), np.full((1, 1), 0.3), np.full((1, 1), 0.5), 1e-16, history=history)
    assert verdict.diverged_at == at
    assert verdict.status == ("out of iterations" if at is None else "diverged")


@pytest.mark.parametrize("method", SOLVERS)
@given(n_batch=st.integers(1, 4), n=st.integers(1, 6), seed=seeds, max_iter=st.integers(1, 30), data=st.data())
def test_every_product_is_counted(method, n_batch, n, seed, max_iter, data):
    J, b = system(np.random.default_rng(seed), n_batch, n, data.draw(st.sampled_from([0.3, 0.9, 1.5])))
    b *= data.draw(st.sampled_from([1.0, 1e-200, 0.0]))
    seen = []

    def watched(v):
        seen.append(v)
        return product(J)(v)

    x0 = data.draw(st.sampled_from([None, 2 * b]))
    solution = solve(method, watched, b, tol=1e-9, max_iter=max_iter, x0=x0, joined=data.draw(st.booleans()))
    assert solution.n_products == len(seen)
    assert solution.iterations <= len(seen)
    most = max_iter + 2 if method != "direct" else b.size + 1
    assert len(seen) <= most


@pytest.mark.parametrize("max_iter", [1, 2, 3, 4, 9, 43, 45])
def test_a_hard_system_takes_all_products_that_are_allowed(max_iter):
    """Of 60 unknowns, rotated: no method comes to its end."""
    Q = 0.99 * np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
    b = np.random.default_rng(1).normal(size=(1, 60))
    # What comes beyond: the product that judges, a Krylov space of one dimension where there is no room for more.
    beyond = {"fixed_point": 1, "gmres": max_iter == 1, "scipy_gmres": {1: 2, 2: 1, 43: 2}.get(max_iter, 0)}
    for method in ("fixed_point", "anderson", "broyden", "gmres", "scipy_gmres", "damped"):
        for x0 in (None, 0.5 * b):
            solution = solve(method, lambda v: v @ Q.T, b, tol=1e-15, max_iter=max_iter, x0=x0)
            assert not solution.converged, method
            if x0 is None:
                assert solution.n_products == max_iter + beyond.get(method, 0), method


@pytest.mark.parametrize("method", SOLVERS)
def test_what_a_solver_does_is_the_same_at_any_size(method):
    """Powers of 2 round nothing: the same steps, and as many."""
    J, b = system(np.random.default_rng(0), 3, 8, 0.02)
    J[0] = b[1] = 0  # solved at once, beside one that is not
    once = solve(method, product(J), b, tol=1e-8)
    for size in (2.0**10, 2.0**-10, 2.0**600, 2.0**-600):
        again = solve(method, product(J), size * b, tol=1e-8)
        np.testing.assert_array_equal(again.x, size * once.x)
        assert (again.iterations, again.status) == (once.iterations, once.status)
    steps = {"gmres": (4, 6), "scipy_gmres": (6, 6), "direct": (1, 9)}
    assert (once.iterations, once.n_products) == steps.get(method, (once.iterations, once.n_products))
    if method == "fixed_point":
        assert once.n_products == solve(method, product(J), b, tol=1e-8, joined=True).n_products == 5


@pytest.mark.parametrize("method", [name for name in HONEST if name != "direct"])
def test_a_start_that_is_just_good_enough_is_left_as_it_is(method):
    one, four = np.diag([1.0, 4.0]), np.diag([4.0, 4.0])
    for b, tol, joined in ((one, 2.0**-10, False), (2.0**-600 * one, 2.0**-10, False), (four, 2.0**-9, True)):
        x0 = b * (1 - 2.0**-10)
        solution = solve(method, np.zeros_like, b, tol=tol, x0=x0, joined=joined)
        assert solution.converged
        np.testing.assert_array_equal(solution.x, x0)


def test_the_halved_iteration_ends_when_its_steps_are_small():
    """With J = I each step is half of the last one, from half of b on."""
    assert solve("damped", lambda v: v, np.diag([1.0, 4.0, 0.0]), tol=2.0**-10).iterations == 10


@given(n_batch=st.integers(1, 3), n=st.integers(1, 12), seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_gmres_knows_a_singular_system_through_rounding(n_batch, n, seed, dtype):
    """I − J symmetric, of eigenvalues 0 and 0.2 to 1.8, in any directions: a full Krylov space without a solution."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.2, 1.8, (n_batch, 1, n))
    values[:, :, 0] = 0
    Q = np.linalg.qr(rng.normal(size=(n_batch, n, n)))[0]
    J = (np.eye(n) - Q * values @ Q.swapaxes(1, 2)).astype(dtype)
    status = solve("gmres", product(J), rng.normal(size=(n_batch, n)).astype(dtype)).status
    assert status in ("singular", "lost to rounding")


@pytest.mark.parametrize("size", [2.0**-12, 1.0, 2.0**12])
def test_gmres_leaves_out_what_a_singular_system_does_not_tell(size):
    """I − J = diag(0, size), and b has a part along the first axis: x is b's, the part that is left has no other.

    Beside it a sample that has a solution.
    """
    J = np.diag([1.0, 1.0 - size])
    solution = solve("gmres", lambda v: v @ J, np.array([[1.0, size], [0.0, size]]), tol=1e-10)
    assert solution.status == "singular"
    np.testing.assert_allclose(solution.x, [[1.0 / size, 1.0], [0.0, 1.0]], rtol=1e-10)


def test_the_direct_solver_takes_whole_columns_and_empty_rows():
    J = np.array(
        [[[1.0, 0.3, 0.2], [1.0, 0.2, 0.4], [1.0, 0.6, 0.1]], [[0.0, 0.0, 0.0], [0.1, 0.2, 0.4], [0.3, 0.6, 0.1]]]
    )
    b = np.random.default_rng(0).normal(size=(2, 3))
    np.testing.assert_allclose(solve("direct", product(J), b).x, exact(J, b), rtol=1e-13)


def test_broyden_forgets_what_its_memory_has_no_room_for():
    """With room for one: the inverse Jacobian is −I and what the last step alone says."""
    J, b = system(np.random.default_rng(0), 1, 5, 0.9)
    seen = []

    def watched(v):
        seen.append(v[0])
        return product(J)(v)

    broyden(watched, b, tol=1e-14, max_iter=6, memory=1)
    points = [np.zeros(5), *seen]
    r = [b[0] + J[0] @ x - x for x in points]
    np.testing.assert_allclose(points[1], b[0], rtol=1e-14)
    for k in range(1, 6):
        s, y = points[k] - points[k - 1], r[k] - r[k - 1]
        H = -np.eye(5) + np.outer(s + y, -s) / (-s @ y)
        np.testing.assert_allclose(points[k + 1], points[k] - H @ r[k], rtol=1e-9)


def test_sizes_from_which_a_system_is_scaled():
    for dtype in (np.float32, np.float64):
        info = np.finfo(dtype)
        for end, inwards in ((float(info.tiny) ** (1 / 3), 1.01), (float(info.max) ** (1 / 3), 0.99)):
            for size, scaled in ((end, True), (inwards * end, False), (end / inwards, True)):
                assert (_scale(np.full((1, 1), size, dtype)) is not None) == scaled, (dtype, size)
        for size in (info.smallest_subnormal, info.max):
            scale = _scale(np.full((1, 1), size))[0, 0]
            assert (scale.dtype, size / scale < 2) == (dtype, True)


def test_what_is_raised_tells_the_worst_sample():
    b = np.array([[0.1, 0.05], [0.0, 0.0], [0.0, 0.3]], np.float32)
    solution = solve("fixed_point", lambda v: np.float32(0.3) * v[:, ::-1], b, tol=1e-9)
    assert solution.status == solve("direct", lambda v: np.float32(0.3) * v, b, tol=1e-9).status == "lost to rounding"
    left, size = solution.residual > 0, norms(b)
    reach = float(np.max(solution.rounding[left] / size[left]))
    with pytest.raises(NotConverged) as raised:
        require(solution, "test")
    assert f"residual of {solution.relative.max():.2e}, tolerance 1e-09; lost" in str(raised.value)
    assert f"may be {reach:.1e}: ask for a larger tolerance or compute in float64" in str(raised.value)


@pytest.mark.parametrize("method", ["gmres", "scipy_gmres"])
def test_krylov_spaces_are_given_up_after_forty_steps(method):
    """I − J a cyclic shift of 60: no step of a shorter space brings anything, one of 60 everything."""
    J = np.eye(60) - np.roll(np.eye(60), 1, axis=0)
    for size, joined in ((1.0, False), (1e-200, False), (1.0, True)):
        found = solve(method, lambda v: v @ J.T, size * np.eye(1, 60), tol=1e-8, joined=joined)
        # And then at once: 40 products, one or SciPy's two that judge.
        assert (found.status, found.n_products) == ("stagnated", 41 if method == "gmres" else 42)
    small = np.eye(30) - np.roll(np.eye(30), 1, axis=0)
    assert solve(method, lambda v: v @ small.T, np.eye(1, 30), tol=1e-8).status == "converged"
