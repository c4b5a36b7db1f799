import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from ide_ref import SGD, equations
from ide_ref.presets import Recipe
from ide_ref.training import evaluation, loop
from ide_ref.training.schedule import learning_rate, time_steps
from ide_ref.training.step import optimiser


@given(
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.99),
    rate=st.floats(0.01, 0.5),
    share=st.sampled_from([None, 0.0, 0.02, 1.0, 3.0]),
    large=st.just(False),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@example(momentum=0.9, decay=0.01, rate=0.5, share=None, large=True, dtype=np.float32)
@example(momentum=0.9, decay=0.01, rate=0.5, share=0.02, large=True, dtype=np.float64)
def test_steps_are_the_equations(momentum, decay, rate, share, large, dtype):
    """With one rate or one per parameter. Large arrays take a kernel; what is not trained stays the very same array."""
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
        rates = {"w": rate / 2**k, "alpha": rate / 2**k * (1 if share is None else share)}
        given_rate = rates["w"] if share is None else rates
        params, velocity = sgd.step(params, velocity, gradients, rate=given_rate)
        for name, (theta, v) in expected.items():
            moved = equations.sgd_step(theta, v, gradients[name], rates[name], momentum, decay)
            expected[name] = tuple(moved)
            for found, known in zip((params[name], velocity[name]), moved, strict=True):
                assert (found.dtype, found.shape) == (dtype, shapes[name])
                np.testing.assert_allclose(found, known, rtol=0, atol=50 * np.finfo(dtype).eps)
    assert params["running_mean"] is still


@given(
    size=st.floats(-25, 25),
    most=st.floats(-3, 3),
    nesterov=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradients_longer_than_a_bound_are_shortened_to_it_together(size, most, nesterov, dtype, seed):
    """Their direction stays; the decay is not theirs. Shorter ones are taken as they are, to the bit."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "alpha": (), "none": (0,), "large": (400, 350)}
    params = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    with np.errstate(under="ignore"):
        gradients = {name: np.asarray(10.0**size * rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    norm = math.hypot(*(float(np.linalg.norm(g.astype(float))) for g in gradients.values()))
    plain, clipped = (SGD(weight_decay=0.01, nesterov=nesterov, clip_norm=c) for c in (None, norm * 10.0**most))
    share = min(1.0, 10.0**most)
    start = plain.start(params, shapes)
    with np.errstate(over="ignore", under="ignore"):
        found = clipped.step(params, start, gradients, rate=0.5)
        by_hand = plain.step(params, start, {name: g * dtype(share) for name, g in gradients.items()}, rate=0.5)
        for mine, known in zip(found, by_hand, strict=True):
            for name, array in mine.items():
                if most >= 1e-3:  # nearer to the bound, rounding decides
                    np.testing.assert_array_equal(array, known[name])
                else:
                    least = 1e-6 * 10.0**size * share
                    np.testing.assert_allclose(array, known[name], rtol=64 * np.finfo(dtype).eps, atol=least)


def test_a_rate_is_refused_by_its_name_or_where_nothing_is_trained():
    theta = {"w": np.ones(2), "b": np.ones(1)}
    with pytest.raises(ValueError, match=r"^rate of 'b' is None, expected a finite number$"):
        SGD().step(theta, theta, theta, rate={"w": 0.1})
    for trained in (theta, {}):
        with pytest.raises(ValueError, match=r"^rate is nan, expected a finite number$"):
            SGD().step(theta, trained, theta, rate=np.nan)


def test_a_gradient_that_is_not_finite_is_not_made_so():
    sgd, theta, v = SGD(clip_norm=1.0, weight_decay=0.0), {"w": np.ones(2)}, {"w": np.zeros(2)}
    for value in (np.nan, np.inf):
        params, _ = sgd.step(theta, v, {"w": np.array([value, 1.0])}, rate=1.0)
        assert not np.isfinite(params["w"][0])
    params, _ = sgd.step(theta, v, {"w": np.zeros(2)}, rate=1.0)
    np.testing.assert_array_equal(params["w"], 1)


@given(
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.99),
    size=st.sampled_from([(), (1,), (3, 4)]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@example(momentum=0.9, decay=0.01, size=(400, 350), dtype=np.float32)
@example(momentum=0.9, decay=0.01, size=(400, 350), dtype=np.float64)
def test_nesterov_looks_one_step_ahead(momentum, decay, size, dtype):
    rng, sgd = np.random.default_rng(1), SGD(momentum=momentum, weight_decay=decay, nesterov=True)
    theta, v = rng.normal(size=size), np.zeros(size)
    params, velocity = {"w": np.asarray(theta, dtype)}, {"w": np.zeros(size, dtype)}
    for _ in range(3):
        gradient = rng.normal(size=size)
        params, velocity = sgd.step(params, velocity, {"w": gradient}, rate=0.1)
        g = gradient + decay * theta
        v = momentum * v + g
        theta = theta - 0.1 * (g + momentum * v)
        for found, known in ((params["w"], theta), (velocity["w"], v)):
            assert (found.dtype, found.shape) == (dtype, size)
            np.testing.assert_allclose(found, known, rtol=0, atol=50 * np.finfo(dtype).eps)


def test_the_rate_falls_after_each_milestone():
    rates = [learning_rate(0.5, epoch=e, step=100, milestones=(2, 3), gamma=0.1) for e in range(5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005, 0.005])


def test_the_rate_rises_to_its_value_within_the_warm_up():
    rates = [learning_rate(0.8, epoch=0, step=s, warmup_steps=4) for s in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


@given(base=st.floats(0.01, 10), n=st.integers(1, 200), warmup=st.integers(0, 20))
def test_the_rate_falls_along_a_cosine(base, n, warmup):
    plan = {"schedule": "cosine", "warmup_steps": warmup, "total_steps": n + warmup, "milestones": (1,)}
    rates = [learning_rate(base, epoch=3, step=s, **plan) for s in range(n + warmup)]
    rising = base * np.arange(1, warmup + 1) / max(warmup, 1)
    falling = base * np.cos(np.pi / 2 * np.arange(n) / n) ** 2
    assert rates == pytest.approx([*rising, *falling])
    # After the warm-up the first step has the whole rate, and the last one is not wasted.
    assert rates[warmup] == pytest.approx(base)
    assert rates[-1] > 0


@given(base=st.floats(0.01, 10), n=st.integers(2, 200))
def test_the_rate_makes_one_cycle(base, n):
    plan = {"schedule": "one-cycle", "total_steps": n, "warmup_steps": 50}
    rates = np.array([learning_rate(base, epoch=0, step=s, **plan) for s in range(n)])
    t = np.arange(n) / (n - 1)
    up = base * (1 / 25 + 24 / 25 * np.sin(np.pi / 2 * t / 0.3) ** 2)
    down = base * (4e-6 + (1 - 4e-6) * np.cos(np.pi / 2 * (t - 0.3) / 0.7) ** 2)
    np.testing.assert_allclose(rates, np.where(t < 0.3, up, down), rtol=1e-9)
    assert rates[0] == pytest.approx(base / 25)
    assert rates[-1] == pytest.approx(base / 250_000)


def test_a_training_of_one_step_has_a_rate():
    assert learning_rate(1.0, epoch=0, step=0, schedule="one-cycle", total_steps=1) == pytest.approx(1 / 25)
    assert learning_rate(1.0, epoch=0, step=0, schedule="cosine", total_steps=1) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of steps, cosine, one-cycle"),
        ({"schedule": "cosine"}, "total_steps is None; expected a whole number of at least 6"),
        ({"schedule": "one-cycle", "total_steps": 5}, "total_steps is 5; expected a whole number of at least 6"),
    ],
)
def test_wrong_plans_of_the_rate(changes, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(0.1, epoch=0, step=5, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of steps, cosine, one-cycle"),
        ({"nesterov": 1}, "nesterov is of type int; expected bool"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; expected a number in \[0, 1\)"),
        ({"label_smoothing": True}, r"label_smoothing is True; expected a number in \[0, 1\)"),
        ({"mean": ()}, r"mean is \(\); expected a tuple of finite numbers, one per channel, or None"),
        ({"std": (0.0,)}, r"std is \(0.0,\); expected positive numbers"),
    ],
)
def test_wrong_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.preset(**changes)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_a_recipe_s_options_reach_the_training(tmp_path, schedule):
    """Rates of each epoch's last step, Nesterov's step and the smoothed loss of a training of one batch per epoch."""
    changes = {"schedule": schedule, "batch_size": 64, "label_smoothing": 0.5, "nesterov": True, "warmup_steps": 0}
    preset = tiny.preset(**changes, dtype="float64", epochs=3)
    seen = []
    found = loop.train(preset, tiny.data(), out=tmp_path, callback=lambda state, _: seen.append(state)).checkpoint
    plan = {"schedule": schedule, "total_steps": 3}
    rates = [learning_rate(0.1, epoch=0, step=s, **plan) for s in range(3)]
    assert [line["lr"] for line in found.history] == rates
    before, after = seen[1], seen[2]
    g = after.velocity["readout.weight"] - 0.9 * before.velocity["readout.weight"]
    moved = before.params["readout.weight"] - rates[1] * (g + 0.9 * after.velocity["readout.weight"])
    np.testing.assert_allclose(after.params["readout.weight"], moved, rtol=1e-12)
    plain = loop.train(
        replace(preset, recipe=replace(preset.recipe, label_smoothing=0.0)), tiny.data(), out=tmp_path / "p"
    )
    assert plain.checkpoint.history[0]["train_loss"] != found.history[0]["train_loss"]


def test_the_optimiser_is_that_of_the_recipe():
    recipe = Recipe("digits", 3, momentum=0.5, weight_decay=0.25, nesterov=True)
    assert optimiser(recipe) == SGD(momentum=0.5, weight_decay=0.25, nesterov=True)


@given(n_steps=st.integers(1, 40), first=st.integers(1, 40), epochs=st.integers(1, 30))
def test_time_steps_grow_evenly_to_those_of_the_recipe(n_steps, first, epochs):
    first = min(first, n_steps)
    assert [time_steps(n_steps, None, epoch=e, epochs=epochs) for e in range(epochs)] == [n_steps] * epochs
    found = [time_steps(n_steps, first, epoch=e, epochs=epochs) for e in range(epochs)]
    assert found[0] == first
    # Whole numbers below an even growth that ends after two thirds.
    even = [first + (n_steps - first) * min(1.0, e / math.ceil(2 * epochs / 3)) for e in range(epochs)]
    assert all(0 <= e - f < 1 + 1e-9 for e, f in zip(even, found, strict=True))
    assert found[math.ceil(2 * epochs / 3) :] == [n_steps] * (epochs // 3)


def test_a_training_whose_time_steps_grow_is_trainings_of_those_steps(tmp_path):
    """Each epoch's batches are those of a training of that T; what is tested has the recipe's."""
    preset = tiny.preset(n_steps=6, first_steps=2, epochs=3, batch_size=64, warmup_steps=0)
    first = replace(preset, recipe=replace(preset.recipe, n_steps=2, first_steps=None))
    grows, alone = [], []
    for trained, seen in ((preset, grows), (first, alone)):
        out = tmp_path / str(trained.recipe.n_steps)
        loop.train(trained, tiny.data(), out=out, seed=1, callback=lambda state, _, seen=seen: seen.append(state))
    assert tiny.same(grows[0].params, alone[0].params)
    history = grows[-1].history
    assert [line["n_steps"] for line in history] == [2, 4, 6]
    assert history[0]["firing_rate"] == pytest.approx(alone[-1].history[0]["firing_rate"], rel=1e-12)
    # Tested after 6 steps, though the first epoch had 2.
    told = evaluation.evaluate(preset, grows[0].params, tiny.data())
    assert (history[0]["test_loss"], history[0]["test_accuracy"]) == (told.loss, told.accuracy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_steps": 0}, "first_steps is 0; expected a whole number of at least 1"),
        ({"first_steps": 4, "n_steps": 3}, "first_steps is 4; expected at most n_steps, 3"),
        ({"first_steps": 1, "input": "spikes"}, "first_steps is of static input"),
    ],
)
def test_time_steps_that_cannot_grow(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.preset(**changes)
