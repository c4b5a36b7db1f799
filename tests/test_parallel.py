"""Training split over ranks: the plain step's numbers, and the same bits from any number of ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ranks
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import LIF, Connection, Dense, Network, Population, Readout, Restriction
from ide_ref.authors import Profile
from ide_ref.presets import Preset
from ide_ref.training.step import training_step

BATCHES = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 25, 33, 40])
PROFILES = (None, Profile(batch_statistics_in_gradient=True), Profile(statistics_twice=True, sweep_first=True))


def network(shape=(1, 4, 4)):
    """Two convolutional populations; batch normalisation and dropout on input, hidden and feedback connections."""
    from ide_ref.synapses import Conv2d

    first = Conv2d.over(shape, 3, kernel=3, padding=1)
    second = Conv2d.over(first.out_shape, 2, kernel=3, padding=1)
    back = Conv2d.over(second.out_shape, 3, kernel=3, padding=1)
    return Network(
        shape,
        (Population("one", first.out_shape), Population("two", second.out_shape)),
        (
            Connection("in", "input", "one", first, bias=True, batch_norm=True, dropout=0.2),
            Connection("up", "one", "two", second, bias=True, batch_norm=True, dropout=0.1),
            Connection("down", "two", "one", back, bias=True, batch_norm=True, restriction=Restriction(0.5)),
        ),
        Readout("two", Dense(second.out_shape, (4,))),
        LIF(0.9, 1.0),
    )


def stepped(group, preset, x, y, params):
    velocity = {name: np.full_like(params[name], 0.01) for name in preset.network.trainable}
    rng = np.random.default_rng(5)
    done = training_step(preset, params, velocity, x, y, rate=0.1, rng=rng, group=group)
    return done, rng.integers(1 << 60)


def prepared(n_batch, dtype, seed, profile=None, spikes=False):
    net = network()
    recipe = replace(
        tiny.RECIPE,
        n_steps=4,
        dtype=dtype,
        tol=1e-13 if dtype == "float64" else 1e-5,
        input="spikes" if spikes else "static",
    )
    preset = Preset.of(net, recipe)
    preset = preset if profile is None else replace(preset, profile=profile)
    rng = np.random.default_rng(seed)
    params = preset.network.init(rng, dtype=dtype)
    # Statistics and scales that are no 0 and 1.
    params = {
        n: (p + rng.uniform(0, 0.5, p.shape)).astype(dtype) if ".bn_" in n or ".running" in n else p
        for n, p in params.items()
    }
    if spikes:
        x = (rng.random((n_batch, 4, 1, 4, 4)) < 0.4).astype(dtype)
    else:
        x = rng.normal(1, 2, (n_batch, 1, 4, 4)).astype(dtype)
    return preset, x, rng.integers(4, size=n_batch), params


@given(
    BATCHES,
    st.sampled_from(["float64", "float32"]),
    st.integers(0, 9),
    st.sampled_from(
        [None, Profile(batch_statistics_in_gradient=True), Profile(statistics_twice=True, sweep_first=True)]
    ),
    st.booleans(),
)
def test_any_number_of_ranks_makes_the_plain_step_and_the_same_bits(n_batch, dtype, seed, profile, spikes):
    preset, x, y, params = prepared(n_batch, dtype, seed, profile, spikes)
    plain, drawn = stepped(None, preset, x, y, params)
    alone = None
    for size in (1, 2, 3, 4):
        for done, drawn_there in ranks.run(size, lambda group: stepped(group, preset, x, y, params)):
            alone = done if alone is None else alone
            assert drawn_there == drawn
            assert tiny.same(done.params, alone.params)
            assert tiny.same(done.velocity, alone.velocity)
            assert (done.loss, done.n_correct) == (alone.loss, alone.n_correct)
    assert alone.n_correct == plain.n_correct
    np.testing.assert_array_equal(alone.rates.n_spikes, plain.rates.n_spikes)
    tol = {"rtol": 1e-10, "atol": 1e-13} if dtype == "float64" else {"rtol": 2e-3, "atol": 2e-5}
    for name, expected in {**plain.backward.gradients, **plain.backward.statistics}.items():
        found = {**alone.backward.gradients, **alone.backward.statistics}[name]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, **tol, err_msg=name)
