"""Cross-examination of the solvers, on systems whose trouble is known because it was built in."""

import json
import time

import numpy as np
import pytest
from small import STRUCTURES, problem, rollout

import ide_ref
from ide_ref.solvers import solve
from ide_ref.verify import cross_examine
from ide_ref.verify.solvers import METHODS, SINGULAR, examine


def system(matrix, n_batch=2, seed=0):
    matrix = np.asarray(matrix, float)
    b = np.random.default_rng(seed).normal(size=(n_batch, len(matrix)))
    return (lambda v: v @ matrix.T), b


@pytest.mark.parametrize("name", STRUCTURES)
def test_all_solvers_agree(name):
    report = cross_examine(*rollout(*problem(name)))
    assert report.agree, report.table()
    assert [row.method for row in report.rows] == list(METHODS)
    for row in report.rows:
        assert row.n_products > 0
        # The certificate bounds the true error, which it does not know.
        assert row.error <= row.certificate * (1 + 1e-6) + 1e-15
    assert report.system.radius <= report.system.gamma * (1 + 1e-9)
    assert not report.system.warnings
    json.dumps(report.to_dict(), allow_nan=False)


def test_gmres_that_stagnates_is_reported():
    """I − J a cyclic shift of 60: GMRES restarted after 40 makes no step at all."""
    product, _ = system(np.eye(60) - np.roll(np.eye(60), 1, axis=0))
    report = examine(product, np.eye(1, 60), gamma=2.0)
    assert report.row("gmres").verdict == "stagnated"
    assert report.row("gmres").residual == pytest.approx(1)
    assert report.row("direct").verdict == "converged"
    assert not report.agree
    assert any("indefinite" in text for text in report.system.warnings)
    assert "warning: I - J is indefinite" in report.table()


def test_singular_system_is_reported():
    """J, of radius and norm 1, has an eigenvalue at which I − J has 0."""
    report = examine(*system(np.diag([1.0, 0.5, 0.2])), gamma=1.0)
    assert [text.split(":")[0] for text in report.system.warnings] == [
        "gamma is 1.000, not below 1", "spectral radius of J is 1.000", "I - J is singular to working precision",
        "I - J is indefinite (symmetric part down to 0.00e+00)",
    ]  # fmt: skip
    assert report.system.condition == np.inf
    assert all(row.verdict != "converged" for row in report.rows), report.table()
    assert np.isnan(report.row("direct").error)
    for method in ("direct", "gmres"):
        assert report.row(method).verdict == "singular"
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["solvers"][0]["certificate"] is None


def test_gamma_above_one_is_reported_and_nothing_certified():
    report = examine(*system(1.3 * np.array([[0, -1.0], [1, 0]])), gamma=1.3)
    assert report.row("fixed_point").verdict == "diverged"
    assert report.row("gmres").verdict == "converged"
    assert all(np.isinf(row.certificate) for row in report.rows)
    texts = " ".join(report.system.warnings)
    assert "gamma is 1.300, not below 1" in texts
    assert "spectral radius of J is 1.300" in texts
    assert "indefinite" not in texts


def test_a_network_beyond_cond():
    network, params, x, y = problem("fashion-mnist-400", restriction=None, dropout=0.0)
    params = {**params, "feedback.weight": 4 * params["feedback.weight"]}
    report = cross_examine(*rollout(network, params, x, y))
    assert any("(COND) does not hold" in text for text in report.system.warnings)


def test_indefinite_and_out_of_products():
    report = examine(*system(np.diag([2.0, 0.5, 0.1])))
    assert report.system.smallest == pytest.approx(-1)
    assert report.row("fixed_point").verdict == "diverged"
    slow = examine(*system(np.diag([0.99, 0.5])), gamma=0.99, methods=("fixed_point",), max_iter=50)
    assert (slow.row("fixed_point").verdict, slow.row("fixed_point").iterations) == ("out of iterations", 50)
    assert slow.row("fixed_point").error <= slow.row("fixed_point").certificate * (1 + 1e-12)


def test_the_worst_sample_is_told_and_what_is_singular_has_no_error():
    """I − J = diag(5¹², 2⁻¹²), of condition 10¹² exactly, beside what is twice and four times as well determined."""
    _, b = system(np.zeros((2, 2)), n_batch=3)
    systems = np.array([[5.0**12, 2.0**-12], [5.0**12, 2.0**-11], [5.0**12, 2.0**-10]])
    report = examine(lambda v: v - systems * v, b, methods=("direct",))
    assert (report.system.condition, np.isnan(report.row("direct").error)) == (SINGULAR, True)
    assert any("singular to working precision" in text for text in report.system.warnings)
    shares = np.array([[0.5], [0.25], [0.75]])
    b *= np.array([[1.0], [1e3], [1e-3]])
    report = examine(lambda v: shares * v, b, gamma=0.75, methods=("fixed_point",), tol=1e-3)
    row, found = report.rows[0], solve("fixed_point", lambda v: shares * v, b, tol=1e-3)
    assert (report.system.radius, report.system.smallest) == (0.75, 0.25)
    assert row.residual == found.relative.max()
    assert row.error == pytest.approx(np.linalg.norm(found.x - b / (1 - shares), axis=1).max())
    assert row.certificate == pytest.approx(found.residual.max() / 0.25)


@pytest.mark.parametrize("n", [0, 1])
def test_systems_of_one_unknown_and_of_none(n):
    report = examine(*system(0.5 * np.eye(n)), gamma=0.5)
    assert report.agree
    assert report.system.examined == (n == 1)


@pytest.mark.parametrize(("b", "J"), [([0.4e308, 0.0], 0.5), ([0.9e308, 0.0], 0.5), ([1.5e308, 1.5e308], -0.5)])
def test_what_is_beyond_the_floats_is_not_solved_and_warns_of_nothing(b, J, recwarn):
    """A sum of the certificate's, the solution, the norm of b."""
    report = examine(lambda v: J * v, np.array([b]), gamma=0.5, methods=(*METHODS, "damped"))
    assert all(row.verdict != "converged" for row in report.rows if b[0] > 0.5e308), report.table()
    assert all(np.isinf(row.certificate) for row in report.rows)
    assert not b[1] or np.isinf(report.row("fixed_point").residual)
    assert not recwarn.list


def test_what_is_asked_of_a_network_reaches_its_system():
    given = rollout(*problem("fashion-mnist-400"))
    begin = time.perf_counter()
    report = cross_examine(*given, methods=("gmres", "fixed_point"), tol=1e-3, max_iter=2, max_size=4)
    assert [row.method for row in report.rows] == ["gmres", "fixed_point"]
    assert (report.tol, report.system.examined, report.row("fixed_point").iterations) == (1e-3, False, 2)
    # The network's own certificate takes no system apart.
    assert np.isfinite(report.row("gmres").certificate)
    assert 0 < sum(row.seconds for row in report.rows) < time.perf_counter() - begin
    assert [line.split()[0] for line in report.table().splitlines()[:3]] == ["solver", "gmres", "fixed_point"]
    assert f"{report.system.size} unknowns per sample, tolerance 1e-03; gamma " in report.table()


def test_halved_on_request_solves_another_equation():
    row = examine(*system(np.diag([0.5, 0.25])), methods=("direct", "damped")).row("damped")
    assert row.verdict == "another equation"
    assert row.error > 0.1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="methods has 'magic'; expected names of fixed_point"):
        examine(*system(np.eye(2) / 2), methods=("magic",))
    network, params, x, _ = problem("fashion-mnist-400")
    frozen = ide_ref.freeze(network, params)
    state = ide_ref.simulate(frozen, x, 2)
    with pytest.raises(ValueError, match=r"d_logits has shape \(4, 7\); expected \(4, 5\), a row per sample"):
        cross_examine(frozen, state, np.zeros((4, 7)))
    plain = ide_ref.build("12", input_shape=(20,), n_classes=5, neuron=ide_ref.IF())
    frozen = ide_ref.freeze(plain, plain.init(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="no feedback connection"):
        cross_examine(frozen, ide_ref.simulate(frozen, x, 2), np.zeros((4, 5)))


@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_certificates_are_of_the_size_of_the_error(size):
    """They tell the 1e-6 to which a solver went, not the size of the system."""
    product, b = system(np.diag([0.5, 0.25, -0.5]))
    row = examine(product, size * b, gamma=0.5, methods=("fixed_point",), tol=1e-6).row("fixed_point")
    assert row.error <= row.certificate <= 10 * row.error
    exact = examine(product, size * b, gamma=0.5, methods=("direct",)).row("direct")
    assert exact.certificate <= 1e-13 * size


@pytest.mark.parametrize("n", [4, 5])
def test_systems_up_to_the_largest_size_are_taken_apart(n):
    report = examine(*system(0.5 * np.eye(n)), max_size=4)
    assert report.system.examined == (n == 4)
    assert [row.method for row in report.rows] == [m for m in METHODS if n == 4 or m != "direct"]
    assert np.isnan(report.system.radius) == (n == 5)
