"""Tags and readings of a pack: every tag is held by a port with that mistake, which fails each case that has it."""

import sys

import numpy as np
import pytest

from ide_ref import equations
from ide_ref.verify import conformance
from ide_ref.verify.conformance import READINGS, TAGS, Case, check
from ide_ref.verify.conformance.make import specify_case, stages

make = sys.modules["ide_ref.verify.conformance.make"]
right_moments, right_normalise_back = equations.moments, equations.normalise_back
right_block_matrix, right_beta = equations.block_matrix, equations.beta


@pytest.fixture(scope="module")
def every_case(whole_pack):
    return conformance.load(whole_pack)


def rollout(spec, *, fires=np.greater_equal, reset="subtract", leak="before", now=True, late=0):
    """(STEP) with one thing wrong: u[1..T] and s[1..T] of each population."""
    net, zeros = spec.net, [np.zeros((len(spec.x), n)) for n in spec.net.sizes]
    u, train, steps = zeros, [zeros] * (1 + late), []
    for t in range(spec.x.shape[1]):
        after, fired, before = [], [], train[-1 - late]
        for i in range(len(net.sizes)):
            own_leak, v_th = equations.own(net.leak, i), equations.own(net.v_th, i)
            v = u[i] + equations.arriving(net, i, spec.x[:, t], before, fired if now else before)
            s = 1.0 * fires(v, v_th)
            left = v * (1 - s) if reset == "zero" else v - v_th * s
            # What is carried: λ(v − V_th s), or λ v − V_th s.
            after.append(own_leak * (left if leak == "before" else v) - v_th * s * (leak == "after"))
            fired.append(s)
            steps.append((i, left, s))
        u, train = after, [*train, fired]
    by = [[step for step in steps if step[0] == i] for i in range(len(net.sizes))]
    return [np.stack([left for _, left, _ in own], 1) for own in by], [np.stack([s for *_, s in own], 1) for own in by]


def simulated(**wrong):
    return lambda patch: patch.setattr(make, "rollout", lambda spec: rollout(spec, **wrong))


def in_equations(name, replacement):
    return lambda patch: patch.setattr(f"ide_ref.equations.{name}", replacement)


def flipped(case):
    """The case with every kernel upside down."""
    kernels = {n: v[..., ::-1, ::-1].copy() for n, v in case.arrays.items() if n.startswith("param/") and v.ndim == 4}
    return Case(case.config, case.arrays | kernels)


def flipped_back():
    """Kernels upside down in (BETA) alone."""


def masks(inside):
    return in_equations(
        "mask",
        lambda net, a, x: [
            1.0 * inside(equations.arriving(net, i, x, a, a), equations.own(net.v_th, i)) for i in range(len(net.sizes))
        ],
    )


def unbiased(z, channel):
    mean, variance = right_moments(z, channel)
    count = len(z) * np.bincount(channel)[channel]
    return mean, variance * count / (count - 1)


def coarse(case):
    """The case's inputs and parameters in the next lower precision: single, or bfloat16 by cutting off."""

    def lower(v):
        if v.dtype == np.float64:
            return v.astype(np.float32).astype(v.dtype)
        return (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if v.dtype == np.float32 else v

    return Case(
        case.config, case.arrays | {name: lower(np.atleast_1d(v)).reshape(v.shape) for name, v in case.given.items()}
    )


def untransposed(net, m, g):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "block_matrix", lambda net: right_block_matrix(net).transpose(0, 2, 1))
        return right_beta(net, m, g)


# For each tag its mistakes, as a change of the equations or of the case.
WRONG = {
    "reset": [simulated(reset="zero")],
    "leak-order": [simulated(leak="after")],
    "threshold": [simulated(fires=np.greater)],
    "population-order": [simulated(now=False)],
    "delay": [simulated(late=1)],
    "mask": [
        masks(lambda p, v_th: p <= v_th),
        masks(lambda p, v_th: p >= 0),
        masks(lambda p, v_th: p == p),
    ],
    "transpose": [in_equations("beta", untransposed)],
    "kernel-flip": [flipped, flipped_back],
    "batch-statistics": [
        in_equations("normalise_back", lambda *p: right_normalise_back(*p[:-1], False)),
        in_equations("moments", unbiased),
    ],
    "zero-gradient": [
        in_equations("beta", lambda net, m, g: [np.zeros_like(v) for v in g]),
        in_equations("beta", lambda net, m, g: g),
    ],
    "precision": [coarse],
}


def answers(case, wrong):
    """What the equations give with a mistake."""
    if wrong in (flipped, coarse):
        return stages(case, specify_case(wrong(case)))
    with pytest.MonkeyPatch.context() as patch:
        if wrong is flipped_back:
            maps = specify_case(flipped(case)).net.maps
            wrong = in_equations("block_matrix", lambda net: right_block_matrix(net._replace(maps=maps)))
        wrong(patch)
        return stages(case, specify_case(case))


@pytest.mark.parametrize("tag", TAGS)
def test_a_case_has_a_tag_where_every_port_with_its_mistake_fails(tag, every_case):
    """And lacks it where one passes: the draws are fixed, so the tags are."""
    caught = {
        case.name for case in every_case if not any(check(case, answers(case, wrong)).passed for wrong in WRONG[tag])
    }
    assert len(caught) >= 2
    tagged = {case.name for case in every_case if tag in case.tags}
    assert tagged == caught, f"too many: {sorted(tagged - caught)}, too few: {sorted(caught - tagged)}"


@pytest.mark.parametrize("reading", READINGS)
def test_an_acceptable_case_agrees_by_one_reading_in_all_stages(reading, every_case):
    for case in (case for case in every_case if reading in case.config["readings"]):
        other = {name: value.copy() for name, value in case.read_as(reading).expected.items()}
        found = check(case, other)
        assert (found.passed, found.reading) == (True, reading)
        assert check(case, case.expected).reading == ""
        # A mask of one reading with the gradients of another is wrong, and so is what no reading gives.
        stage = "grad/" if reading != "single-precision" else "u/"
        mixed = {n: case.expected[n] if n.startswith(stage) else v for n, v in other.items()}
        wrong = {n: 1.01 * v if n.startswith(stage) else v for n, v in other.items()}
        assert check(case, mixed).passed is (reading == "single-precision")
        assert not check(case, wrong).passed
        assert check(case, wrong).divergence.stage == ("mask" if stage == "grad/" else "weight")


def test_no_other_case_takes_a_reading(every_case):
    required = [case for case in every_case if case.group == "required"]
    assert len(required) == 42
    for case in required[::9]:
        narrow = {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in case.expected.items()}
        assert check(case, narrow).divergence.kind == "dtype"


def test_at_the_threshold_itself_no_rounding_is_the_excuse(every_case):
    case = next(case for case in every_case if case.name == "threshold-if-static")
    found = check(case, answers(case, WRONG["threshold"][0])).divergence
    assert (found.stage, found.rounding) == ("spikes", False)
    told = "v was V_th exactly, whatever the rounding, and at V_th a neuron fires"
    assert str(found).endswith(f"expected 1, got 0: rounding cannot explain it; {told}")
