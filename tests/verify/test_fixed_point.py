"""`check_fixed_point`: right gradients are right, wrong ones wrong, and what differences cannot tell is said."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verify.fixed_points import KINDS, drawn, spoilt

from ide_ref.verify import check_fixed_point
from ide_ref.verify.fixed_point import NoFixedPoint

layers = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS), "convolution": st.booleans(), "dtype": st.sampled_from([np.float32, np.float64])}
)
seeds = st.integers(0, 2**32 - 1)
fewer = settings(max_examples=settings.default.max_examples * 2 // 5)


@fewer
@given(layer=layers, seed=seeds)
def test_a_right_gradient_is_right(layer, seed):
    report = drawn(rng=np.random.default_rng(seed), **layer).check(n_directions=2)
    assert report.verdict == "right", report.table()
    first, second = report.orders
    assert np.isnan(first) or first == pytest.approx(1.0, abs=0.2)
    # In single precision the gradient's own rounding shows at the shortest steps.
    assert np.isnan(second) or second > 1.5 or layer["dtype"] == np.float32


@fewer
@given(layer=layers, seed=seeds, error=st.floats(1e-3, 1.0))
def test_a_wrong_gradient_is_wrong_and_its_remainder_of_first_order(layer, seed, error):
    rng = np.random.default_rng(seed)
    made = drawn(rng=rng, **layer)
    if not any(np.any(g) for g in made.gradient.values()):
        return
    report = spoilt(made, rng, error).check()
    assert report.verdict == "wrong", report.table()
    assert report.orders[1] == pytest.approx(1.0, abs=0.2)


@fewer
@given(kind=st.sampled_from(KINDS), seed=seeds, error=st.sampled_from([0.0, 1e-3, 0.1]))
def test_what_single_precision_cannot_tell_is_undecidable(kind, seed, error):
    """An f that computes in float32 whatever it is given."""
    rng = np.random.default_rng(seed)
    layer = drawn(kind, rng, dtype=np.float32)
    if error and any(np.any(g) for g in layer.gradient.values()):
        layer = spoilt(layer, rng, error)
    single = layer.f

    def f(z, x, theta):
        theta = {name: value.astype(np.float32) for name, value in theta.items()}
        return single(z.astype(np.float32), x.astype(np.float32), theta).astype(np.float32)

    layer.f = f
    report = layer.check(n_directions=1)
    assert report.dtype == "float32"
    assert report.verdict != ("right" if error else "wrong"), report.table()
    # At a kink more digits would decide nothing.
    hidden = any(row.verdict == "undecidable" and not row.one_sided for row in report.rows)
    assert ("f computes in float32; its rounding" in report.table()) == hidden


def test_a_large_state_is_solved_without_its_jacobian():
    rng = np.random.default_rng(0)
    layer = drawn("tanh", rng, n=45, n_batch=9, gamma=0.5)
    assert layer.check(n_directions=1).verdict == "right"
    assert spoilt(layer, rng, 1e-3).check(n_directions=1).verdict == "wrong"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-3, 0.0, 1e3])
def test_a_start_away_from_the_fixed_point_is_told_from_a_wrong_gradient(size, dtype):
    """z = z/2 + b, whose fixed point is 2 b, where the gradient of ⟨c, z⟩ is 2 c."""
    b, c = size * np.array([3.0, -4.0]), np.array([1.0, 2.0])
    for off, told in ((0.0, False), (1e-2, True), (1.0, True)):
        z = (2 * b + off * 2 * (size or 0.5) * np.array([0.0, 5.0])).astype(dtype)
        report = check_fixed_point(
            lambda z, x, theta: 0.5 * z + theta["b"], z, {"b": b}, None, {"b": 2 * c}, cotangent=c
        )
        assert report.verdict == "right"
        assert report.start_distance == pytest.approx(off * (1 if size else 5), abs=1e-7)
        line = f"the z given was {report.start_distance:.1e}, relative, from the fixed point"
        assert (line in report.table()) == told, report.table()
        assert report.to_dict()["start_distance"] == report.start_distance


def test_a_map_need_not_contract():
    b, c = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 3.0])
    report = check_fixed_point(
        lambda z, x, theta: -3 * z + theta["b"], 0 * b, {"b": b}, None, {"b": c / 4}, cotangent=c
    )
    assert report.verdict == "right"
    assert report.lipschitz == pytest.approx(3.0)
    assert report.certificate == np.inf
    assert report.start_distance == pytest.approx(1.0)
    assert 0 < report.start_resolution < 1e-6


@pytest.mark.parametrize(("share", "verdict"), [(0.0, "right"), (1.0, "right"), (-1.0, "wrong"), (2.0, "wrong")])
def test_at_a_kink_either_side_is_right(share, verdict):
    """z = max(0.3 z + b, 0) at b = 0, whose derivative is 0 on one side and 1/0.7 on the other."""
    report = check_fixed_point(
        lambda z, x, theta: np.maximum(0.3 * z + theta["b"], 0.0),
        np.zeros(1), {"b": np.zeros(1)}, None, {"b": np.array([share / 0.7])}, cotangent=np.ones(1),
    )  # fmt: skip
    assert report.verdict == verdict
    assert all(row.one_sided for row in report.rows)


def test_between_the_sides_of_a_kink_nothing_is_decided():
    report = check_fixed_point(
        lambda z, x, theta: np.maximum(0.3 * z + theta["b"], 0.0),
        np.zeros(1), {"b": np.zeros(1)}, None, {"b": np.array([0.5])}, cotangent=np.ones(1),
    )  # fmt: skip
    assert report.verdict == "undecidable"
    assert "f computes in" not in report.table()


def test_a_loss_stands_in_for_the_cotangent():
    layer = drawn("tanh", np.random.default_rng(3), n=6)
    arguments = (layer.f, layer.z, layer.theta, layer.x, layer.gradient)
    assert check_fixed_point(*arguments, loss=lambda z: np.sum(layer.cotangent * z)).verdict == "right"
    assert check_fixed_point(*arguments, loss=lambda z: np.sum(1.001 * layer.cotangent * z)).verdict == "wrong"


def test_a_part_of_the_parameters_is_checked_as_a_part():
    layer = drawn("softplus", np.random.default_rng(1), n=4)
    del layer.gradient["W"], layer.gradient["F"]
    report = layer.check()
    assert {row.parameter for row in report.rows} == {"b"}
    assert report.verdict == "right"


def test_arguments_are_left_as_they_are_and_may_be_read_only():
    layer = drawn("clip", np.random.default_rng(2), n=5)
    arrays = [layer.z, layer.x, layer.cotangent, *layer.theta.values(), *layer.gradient.values()]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    layer.check(n_directions=1)
    assert all(map(np.array_equal, arrays, before))


def test_the_report_is_the_same_for_the_same_seed_and_can_be_written():
    layer = drawn("tanh", np.random.default_rng(4), n=3)
    report = layer.check(seed=5)
    assert report == layer.check(seed=5)
    assert report != layer.check(seed=6)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["verdict"] == "right"
    assert len(document["rows"]) == len(report.rows) == 12
    assert "\n12 directions, tolerance 1e-05: right\n" in report.table()
    assert max(map(len, report.table().splitlines())) <= 120
    assert str(report) == report.table()
    worst = max(row.error for row in report.rows)
    assert repr(report) == f"FixedPointReport(right, 12 directions, worst relative error {worst:.1e})"


def refuse(error, match, **changed):
    layer = drawn("tanh", np.random.default_rng(0), n=4, n_batch=2)
    named = {
        "f": layer.f, "z": layer.z, "theta": layer.theta, "x": layer.x, "gradient": layer.gradient,
        "cotangent": layer.cotangent,
    }  # fmt: skip
    with pytest.raises(error, match=match):
        check_fixed_point(**{**named, **changed})


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"f": lambda z, x, theta: z[:1]}, r"f returned shape \(1, 4\); expected that of z, \(2, 4\)"),
        ({"f": lambda z, x, theta: z * np.nan}, "NaN or infinite at z"),
        ({"f": lambda z, x, theta: 0.1 * z + np.random.default_rng().random(z.shape)}, "fix its randomness"),
        ({"f": 3}, "f is of type int; expected a callable"),
        ({"z": np.full((2, 4), np.inf)}, "z has values that are NaN or infinite"),
        ({"cotangent": np.ones(4)}, r"cotangent has shape \(4,\); expected that of z"),
        ({"cotangent": None}, "expected one of the two"),
        ({"loss": abs}, "expected one of the two"),
        ({"gradient": {}}, "gradient is dict; expected a mapping of names to arrays, not empty"),
        ({"gradient": {"V": np.ones(3)}}, "gradient has 'V'; theta has 'W', 'F', 'b'"),
        ({"gradient": {"b": np.ones(3)}}, r"gradient\['b'\] has shape \(3,\); expected that of theta, \(4,\)"),
        ({"theta": [1.0]}, "theta is list; expected a mapping"),
        ({"tol": 0.0}, "tol is 0.0; expected a positive"),
        ({"n_directions": 0}, "n_directions is 0"),
        ({"cotangent": None, "loss": lambda z: z}, r"loss returned shape \(2, 4\); expected a number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, match):
    refuse(ValueError, match, **changed)


@pytest.mark.parametrize("f", [lambda z, x, theta: z + 1.0, lambda z, x, theta: -(z**3) - 4 * z + 1e6 * np.sign(z + 1)])
def test_where_there_is_no_fixed_point_near_the_start_that_is_said(f):
    refuse(NoFixedPoint, r"no fixed point that iteration from z reaches: residual .* at \|z\| = ", f=f)


def test_what_f_raises_is_seen():
    def f(z, x, theta):
        raise KeyError("missing")

    refuse(KeyError, "missing", f=f)
