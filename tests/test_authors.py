"""Every reference vector of the authors' program: rates to rounding, gradients to 1e-8.

The vectors are the ``.npz`` files of the folder IDE_REF_AUTHORS_DIR, or the copies beside this test. Network and
profile follow from the arrays.
"""

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from ide_ref import IF, LIF, Restriction, backward, build, cross_entropy, freeze, read_out, simulate
from ide_ref.authors import PAPER, Profile, authors, edited

FOLDER = Path(os.environ.get("IDE_REF_AUTHORS_DIR") or Path(__file__).parent / "data" / "authors")


class Vector:
    """One file, and the network it was made with."""

    def __init__(self, path):
        with np.load(path) as file:
            self.arrays = d = dict(file)
        self.is_spike_input = d["x"].ndim > d["input_weight"].ndim
        self.x = np.moveaxis(d["x"], -1, 1) if self.is_spike_input else d["x"]
        self.n_hidden = sum(name.startswith("hidden") and name.endswith("_weight") and "bn" not in name for name in d)
        # Where their power iteration had not converged, the weight it left is the one to use.
        matrix = d["feedback_raw_weight"].reshape(len(d["feedback_raw_weight"]), -1)
        restricted = d["feedback_alpha"] / np.linalg.norm(matrix, 2) * d["feedback_raw_weight"]
        self.converged = np.allclose(restricted, d["feedback_effective_weight"], rtol=0, atol=1e-10)
        network = build(
            self.structure(),
            input_shape=self.x.shape[2:] if self.is_spike_input else self.x.shape[1:],
            n_classes=len(d["readout_bias"]),
            neuron=IF(float(d["vth"])) if d["leak"] == 1 else LIF(float(d["leak"]), float(d["vth"])),
            restriction=Restriction(norm="kernel") if self.converged else None,
        )
        self.network = replace(
            network,
            connections=tuple(replace(c, batch_norm=f"{c.name}_bn_weight" in d) for c in network.connections),
        )

    def structure(self):
        """Structure string. Pictures are halved by the first layer and, if there are more, by the third."""

        def layer(weight, mode=""):
            return str(len(weight)) if weight.ndim == 2 else f"{len(weight)}C{weight.shape[2]}{mode}"

        first, feedback = self.arrays["input_weight"], self.arrays["feedback_raw_weight"]
        if not self.n_hidden:
            return f"{layer(first, 's')} (F{layer(feedback)})"
        hidden = [layer(self.arrays[f"hidden{i}_weight"], "s" * (i == 2)) for i in range(1, self.n_hidden + 1)]
        return f"{'-'.join([layer(first, 's'), *hidden])} (F{layer(feedback.swapaxes(0, 1), 'u')})"

    def name_of(self, parameter):
        """What the file calls a parameter."""
        if parameter == "feedback.weight":
            return "feedback_raw_weight" if self.converged else "feedback_effective_weight"
        owner, part = parameter.split(".")
        return f"{owner}_bn_{part}_before" if part.startswith("running") else f"{owner}_{part}"

    def params(self):
        drawn = self.network.init(np.random.default_rng(0))
        return {name: self.arrays.get(self.name_of(name), value) for name, value in drawn.items()}

    def profiles(self):
        """The authors' with converged norms; for one population and static input the paper's agrees with it."""
        yield replace(authors(1 + self.n_hidden), one_power_step=False)
        if not self.n_hidden and not self.is_spike_input:
            yield PAPER


def vectors():
    return [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("*.npz"))]


def test_there_are_vectors():
    assert vectors(), f"{FOLDER} has no .npz files"


@pytest.mark.parametrize("path", vectors())
def test_rates_and_gradients_are_theirs(path):
    vector = Vector(path)
    d, network, params = vector.arrays, vector.network, vector.params()
    for profile in vector.profiles():
        frozen = freeze(edited(network, profile), params, vector.x, training=True)
        rates = simulate(frozen, vector.x, int(d["T"]))
        logits = read_out(frozen, rates)
        loss, d_logits = cross_entropy(logits, d["y"])
        first, last = network.populations[0].name, network.populations[-1].name
        for ours, theirs in (
            (frozen.maps[-1].weight, d["feedback_effective_weight"]),
            (rates.of(last), d["rate"]),
            (rates.of(first), d.get("rate_first", rates.of(first))),
            (logits, d["logits"]),
            (loss, d["loss"]),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
        back = backward(frozen, rates, d_logits, solver="gmres", tol=1e-12, max_iter=2000)
        for name in network.trainable:
            ours, theirs = back.gradients[name], d[f"grad_{vector.name_of(name)}"]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8, err_msg=name)
            # Small ones relatively, down to the 1e-9 to which their Broyden solver ran.
            assert np.abs(ours - theirs).max() <= 1e-7 * np.abs(theirs).max() + 1e-9, name


@pytest.mark.parametrize("profile", [PAPER, authors(1), authors(2), Profile(unbiased_spike_statistics=True)])
@pytest.mark.parametrize("structure", ["4 (F4)", "4-3 (F4)"])
def test_maps_put_in_place_of_others_are_the_ones_simulated(structure, profile):
    network = edited(build(structure, input_shape=(3,), n_classes=2, neuron=IF(1.0)), profile)
    rng = np.random.default_rng(0)
    x = (rng.random((2, 12, 3)) < 0.5).astype(float)
    frozen = freeze(network, network.init(rng), x, training=True, rng=rng)
    silent = replace(frozen, maps=tuple(replace(m, keep=np.zeros((2, m.synapse.n_out))) for m in frozen.maps))
    assert simulate(frozen, x, 12).a.any()
    assert not simulate(silent, x, 12).a.any()


def test_the_authors_program_has_every_difference_but_those_said():
    for n_populations in (1, 2, 5):
        found = {name for name, on in asdict(authors(n_populations)).items() if on}
        expected = set(asdict(PAPER)) - {"batch_statistics_in_gradient"}
        assert found == (expected if n_populations > 1 else expected - {"sweep_first"})


@pytest.mark.parametrize("profile", [authors(1), Profile(statistics_twice=True)])
def test_parameters_under_a_profile_start_at_the_norm_if_they_are_clamped_later(profile):
    network = edited(build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF()), profile)
    for dtype in (np.float32, np.float64):
        params = network.init(np.random.default_rng(0), dtype=dtype)
        assert {value.dtype for value in params.values()} == {np.dtype(dtype)}
        start = np.linalg.norm(params["feedback.weight"], 2) if profile.clamp_alpha else 0.9
        assert params["feedback.alpha"] == pytest.approx(start, rel=1e-6)


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_statistics_are_others_where_that_was_asked_alone(spikes, twice, unbiased):
    """Spikes are normalised otherwise in simulation, and a static batch enters the running statistics twice."""
    profile = Profile(statistics_twice=twice, unbiased_spike_statistics=unbiased, one_power_step=True)
    network = edited(build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF()), profile)
    rng = np.random.default_rng(0)
    x, params = rng.normal(size=(5, 6, 3) if spikes else (5, 3)), network.init(rng)
    frozen = freeze(network, params, x, training=True)
    same = np.array_equal(frozen.simulated[0].norm.variance, frozen.maps[0].norm.variance)
    assert same == (not (spikes and unbiased))
    found = backward(frozen, simulate(frozen, x, 6), np.ones((5, 2))).statistics
    share = 0.19 if twice and not spikes else 0.1
    for part, start in (("running_mean", 0.0), ("running_var", 1.0)):
        batch = getattr(frozen.maps[0].norm, "mean" if start == 0 else "variance")
        np.testing.assert_allclose(found[f"input.{part}"], (1 - share) * start + share * batch, rtol=1e-12)
