import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ide_ref import SGD, equations
from ide_ref.training.schedule import learning_rate


@given(
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.99),
    rate=st.floats(0.01, 0.5),
    large=st.just(False),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@example(momentum=0.9, decay=0.01, rate=0.5, large=True, dtype=np.float32)
@example(momentum=0.9, decay=0.01, rate=0.5, large=True, dtype=np.float64)
def test_steps_are_the_equations(momentum, decay, rate, large, dtype):
    """Large arrays take a kernel; what is not trained stays the very same array."""
    rng, sgd = np.random.default_rng(3), SGD(momentum=momentum, weight_decay=decay)
    shapes = {"w": (400, 350) if large else (3, 4), "alpha": ()}
    params = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    params["running_mean"] = still = np.array([7.0], dtype)
    velocity = sgd.start(params, ("w", "alpha"))
    expected = {name: (params[name].astype(float), np.zeros(shape)) for name, shape in shapes.items()}
    for k in range(3):
        for array in (*params.values(), *velocity.values()):
            array.flags.writeable = False
        gradients = {name: rng.normal(size=shape) for name, shape in shapes.items()}  # of another type perhaps
        params, velocity = sgd.step(params, velocity, gradients, rate=rate / 2**k)
        for name, (theta, v) in expected.items():
            moved = equations.sgd_step(theta, v, gradients[name], rate / 2**k, momentum, decay)
            expected[name] = tuple(moved)
            for found, known in zip((params[name], velocity[name]), moved, strict=True):
                assert (found.dtype, found.shape) == (dtype, shapes[name])
                np.testing.assert_allclose(found, known, rtol=0, atol=50 * np.finfo(dtype).eps)
    assert params["running_mean"] is still


def test_the_rate_falls_after_each_milestone():
    rates = [learning_rate(0.5, epoch=e, step=100, milestones=(2, 3), gamma=0.1) for e in range(5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005, 0.005])


def test_the_rate_rises_to_its_value_within_the_warm_up():
    rates = [learning_rate(0.8, epoch=0, step=s, warmup_steps=4) for s in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
