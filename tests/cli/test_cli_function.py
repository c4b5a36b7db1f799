"""``ide-ref gradcheck --function``: a user's fixed point, from a file in the working folder."""

import json

import pytest

SOURCE = """
import numpy as np

W, b, c = np.array([[0.2, -0.3], [0.1, 0.4]]), np.array([0.5, -0.2]), np.array([1.0, 2.0])


def f(z, x, theta):
    return np.tanh(theta["W"] @ z + theta["b"])


def layer(error=0.0):
    z = np.zeros(2)
    for _ in range(200):
        z = f(z, None, {"W": W, "b": b})
    M = np.diag(1 - z**2)
    delta = M @ np.linalg.solve(np.eye(2) - W.T @ M, c)
    gradient = {"W": np.outer(delta, z), "b": (1 + error) * delta}
    return {"f": f, "z": z, "theta": {"W": W, "b": b}, "x": None, "gradient": gradient, "cotangent": c}


def wrong():
    return layer(1e-3)


def few():
    return {**layer(), "n_directions": 1}


def short():
    return {"f": f}


def other():
    return {**layer(), "rate": 0.1}


def number():
    return 3


LIMIT = 3
"""


@pytest.fixture
def layers(tmp_path, monkeypatch):
    """A name that no other test imports, for modules stay loaded."""
    name = f"layers_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_right_and_a_wrong_gradient(run, layers, tmp_path):
    status, text, _ = run("gradcheck", "--function", f"{layers}:layer", "--figure", tmp_path / "new" / "r.svg")
    assert (status, "tolerance 1e-05: right" in text) == (0, True)
    assert (tmp_path / "new" / "r.svg").read_text().startswith("<?xml")
    status, text, _ = run("gradcheck", "--function", f"{layers}:wrong", "--json")
    assert (status, json.loads(text)["verdict"]) == (1, "wrong")
    # Of a thousandth nothing is wrong to within a tenth.
    status, text, _ = run("gradcheck", "--function", f"{layers}:wrong", "--tol", "0.1", "--json")
    assert (status, json.loads(text)["tol"]) == (0, 0.1)


def test_options_of_the_check_reach_it_and_those_of_a_network_are_refused(run, layers):
    words = ("gradcheck", "--function", f"{layers}:few")
    for given, n_rows in (((), 3), (("--directions", "1"), 3), (("--directions", "2"), 6)):
        status, text, _ = run(*words, *given, "--json")
        assert (status, len(json.loads(text)["rows"])) == (0, n_rows)
    status, text, error = run(*words, "--small", "--samp", "8", "--neuron", "lif")  # abbreviated, and defaults
    assert (status, text) == (2, "")
    assert "--neuron, --samples, --small: of a network, not of --function MODULE:NAME" in error
    assert "expected with it --directions, --figure, --json, --seed, --threads, --tol" in error


def test_help_has_the_defaults_of_both(run):
    told = " ".join(run("gradcheck", "--help")[1].split())
    assert "of --function 1e-5, of its gradients in single precision 1e-4, in half precision 2e-2)" in told
    assert "(default 2; of --function 3)" in told


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("short", "returned nothing for gradient, theta, x, z"),
        ("other", "returned a dict with ['rate']; expected a dict of cotangent, f, gradient, loss, n_directions"),
        ("number", "returned int; expected a dict of"),
        ("LIMIT", "is of type int; expected a function"),
        ("missing", "has no 'missing'"),
    ],
)
def test_what_is_no_such_function_is_refused(run, layers, name, says):
    status, text, error = run("gradcheck", "--function", f"{layers}:{name}")
    assert (status, text) == (2, "")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--function", "no_such_module_here:f"], "there is no module 'no_such_module_here' here"),
        (["--function", "no_colon"], "expected module:name"),
        (["--function", "./layers.py:f"], "expected module:name"),
        (["--function", "a:b", "digits"], "one of the two"),
        ([], "expected a preset or checkpoint, or --function"),
        (["digits", "--figure", "r.png"], "--figure draws the remainders of --function MODULE:NAME; give both"),
    ],
)
def test_wrong_words_are_refused(run, words, says):
    status, _, error = run("gradcheck", *words)
    assert status == 2
    assert says in error
