"""Every mistake of the library, planted in the equations, is found and named."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import gradient
from small import STRUCTURES, problem, rollout

import ide_ref
from ide_ref import presets
from ide_ref.authors import PAPER, edited
from ide_ref.verify import MISTAKES, Context, check_gradient, compare
from ide_ref.verify.compare import as_array

DENSE = "fashion-mnist-400"
WHERE = dict.fromkeys([m.name for m in MISTAKES], DENSE)
WHERE |= dict.fromkeys(["unflipped kernel", "flipped weight gradient", "mean over positions"], "mnist-64c5")
WHERE |= dict.fromkeys(["last frame for the mean input", "plain mean of the input", "input summed"], "nmnist-64c5")


def situation(name, profile=PAPER, **options):
    network, params, x, y = problem(name, **options)
    frozen, rates, d_logits = rollout(edited(network, profile), params, x, y)
    ours = ide_ref.backward(frozen, rates, d_logits, solver="gmres", tol=1e-12)
    return frozen, rates, x, d_logits, ours.gradients


@pytest.mark.parametrize("name", ["fashion-mnist-400", "mnist-64c5", "nmnist-64c5"])
def test_the_oracle_without_a_mistake_agrees(name):
    frozen, rates, x, d_logits, ours = situation(name)
    report = compare(ours, gradient(frozen, rates, x, d_logits), tol=1e-10)
    assert report.same, report.table()
    assert report.mistake is None
    context = Context(frozen, rates, d_logits, x)
    assert compare(ours, context.gradients(), tol=1e-10).same


@pytest.mark.parametrize("mistake", WHERE)
def test_planted_mistakes_are_named(mistake):
    frozen, rates, x, d_logits, ours = situation(WHERE[mistake])
    wrong = gradient(frozen, rates, x, d_logits, mistake)
    report = compare(ours, wrong, context=Context(frozen, rates, d_logits, x))
    assert not report.same
    assert report.mistake == mistake, report.table()
    assert report.suspects[0].says in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("mistake", ["last frame for the mean input", "plain mean of the input", "input summed"])
def test_a_wrong_input_changes_what_the_input_reaches_alone(mistake, monkeypatch):
    monkeypatch.setitem(STRUCTURES, "two layers of spikes", ("4C5s-6C3s (F4C3u)", (2, 8, 8), 6))
    frozen, rates, x, d_logits, _ = situation("two layers of spikes")
    context = Context(frozen, rates, d_logits, x)
    right = context.gradients()
    (planted,) = (m.plant(context) for m in MISTAKES if m.name == mistake)
    for name, value in planted.items():
        if not name.startswith("input."):
            np.testing.assert_array_equal(value, right[name], err_msg=name)
    assert not np.allclose(planted["input.weight"], right["input.weight"])


def test_mistakes_of_networks_under_the_cifar_presets_settings(monkeypatch):
    """The gradient through hidden batch statistics, which these presets take, is planted with the mistake too."""
    monkeypatch.setitem(STRUCTURES, "two layers", ("4C5s-6C3s (F4C3u)", (2, 8, 8), None))
    profile = presets.load("cifar10-alexnet-f").profile
    assert profile.batch_statistics_in_gradient
    frozen, rates, x, d_logits, ours = situation("two layers", profile)
    # By hand: what convolutions get, divided by the positions of the population that they reach.
    positions = {"input": 16, "hidden1": 4, "feedback": 16}
    port = {name: g / (1 if "alpha" in name else positions.get(name.split(".")[0], 1)) for name, g in ours.items()}
    report = compare(ours, port, context=Context(frozen, rates, d_logits, x))
    assert report.mistake == "mean over positions", report.table()


def test_named_in_single_precision_too():
    frozen, rates, x, d_logits, _ = situation(DENSE)
    right = gradient(frozen, rates, x, d_logits)
    for mistake in (name for name, place in WHERE.items() if place == DENSE):
        wrong = {k: v.astype(np.float32) for k, v in gradient(frozen, rates, x, d_logits, mistake).items()}
        assert compare(right, wrong, context=Context(frozen, rates, d_logits, x), tol=1e-4).mistake == mistake


@pytest.mark.parametrize("mistake", WHERE)
def test_gradcheck_detects_every_mistake(mistake):
    name = WHERE[mistake]
    network, params, x, y = problem(name)
    frozen, rates, x, d_logits, _ = situation(name)
    if mistake.startswith(("a[T-1]", "rates", "plain mean", "last frame", "input summed")):
        wrong = gradient(frozen, rates, x, d_logits, mistake)
    else:  # planted at the equilibrium itself, so that the mistake is all there is to find
        state = ide_ref.find_equilibrium(frozen, x)
        _, d_logits = ide_ref.cross_entropy(ide_ref.read_out(frozen, state), y)
        still = SimpleNamespace(a=state.a, n_steps=6)  # in the place of a rollout
        wrong = gradient(frozen, still, x, d_logits, mistake)
        good = gradient(frozen, still, x, d_logits)
        assert check_gradient(network, params, x, y, n_coordinates=0, n_directions=1, gradients=good).passed
    report = check_gradient(network, params, x, y, n_coordinates=0, n_directions=1, gradients=wrong)
    assert report.max_rel_error > 1e-4, report.table()


def test_one_parameter_alone():
    frozen, rates, x, d_logits, ours = situation(DENSE)
    wrong = dict(ours)
    wrong["feedback.weight"] = gradient(frozen, rates, x, d_logits, "outer product transposed")["feedback.weight"]
    wrong["readout.bias"] = 3.7 * ours["readout.bias"]
    report = compare(ours, wrong, context=Context(frozen, rates, d_logits, x))
    assert report.mistake is None
    rows = {row.parameter: row for row in report.rows}
    assert rows["feedback.weight"].looks_like == ("outer product transposed",)
    assert rows["readout.bias"].ratio == pytest.approx(3.7)
    assert rows["readout.bias"].cosine == pytest.approx(1)
    assert rows["readout.bias"].looks_like == ()
    assert rows["input.weight"].status == "same"
    assert "no single known mistake" in report.table()


def test_without_a_context():
    *_, ours = situation("mnist-64c5")
    assert compare(ours, {k: -v for k, v in ours.items()}).mistake == "sign"
    assert compare(ours, {k: v / 2 for k, v in ours.items()}).mistake == "factor 1/2"
    flipped = {k: v[:, :, ::-1, ::-1] if v.ndim == 4 else v for k, v in ours.items()}
    assert compare(ours, flipped).mistake == "flipped weight gradient"


def test_bad_arrays_are_named_in_their_row():
    *_, ours = situation(DENSE)
    theirs = dict(ours)
    del theirs["input.bias"]
    theirs["spare"] = np.zeros(3)
    theirs["input.weight"] = ours["input.weight"].T
    theirs["readout.weight"] = ours["readout.weight"].copy()
    theirs["readout.weight"][1, 2] = np.nan
    theirs["readout.bias"] = np.array(["a"] * 5)
    report = compare(ours, theirs)
    rows = {row.parameter: (row.status, row.detail) for row in report.rows}
    for name, status, detail in (
        ("input.bias", "missing", ""),
        ("spare", "unexpected", ""),
        ("input.weight", "wrong shape", "its transpose agrees"),
        ("readout.weight", "not finite", "(1, 2)"),
        ("readout.bias", "no numbers", "array 'readout.bias' is a ndarray that gives no real numbers"),
    ):
        assert rows[name][0] == status
        assert detail in rows[name][1]
    assert not report.same


def test_wrong_arguments():
    *_, ours = situation(DENSE)
    with pytest.raises(ValueError, match="theirs is a list; expected a mapping of parameter names to gradients"):
        compare(ours, list(ours.values()))
    with pytest.raises(ValueError, match="ours is a NoneType"):
        compare(None, ours)
    with pytest.raises(ValueError, match="context is a tuple; expected a Context"):
        compare(ours, ours, context=(1, 2))
    with pytest.raises(ValueError, match="tol is nan; expected a positive"):
        compare(ours, ours, tol=float("nan"))


def only(*names):
    """What gives an array through these of its methods alone."""
    return lambda array: SimpleNamespace(**{name: getattr(array, name) for name in names})


@pytest.mark.parametrize("wrap", [only("__dlpack__", "__dlpack_device__"), only("__array__"), np.ndarray.tolist])
def test_any_array(wrap):
    *_, ours = situation(DENSE)
    assert compare(ours, {name: wrap(np.asarray(value)) for name, value in ours.items()}).same
    with pytest.raises(ValueError, match="array 'w' is a object that gives no real numbers"):
        as_array("w", object())
