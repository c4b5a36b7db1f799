"""Weights of other programs run, and fire the spikes that these fired."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_authors import Vector, vectors
from tiny import same

from ide_ref import IF, LIF, Neuron, Restriction, build, freeze, read_out, simulate
from ide_ref.authors import Profile, authors, edited
from ide_ref.weights import authors_params, from_norse, from_snntorch

RECORDED = json.loads((Path(__file__).parent / "ledger/ledger.json").read_text())["recurrent"]


def checkpoint(vector):
    """The vector's arrays as the authors' program would save them, wrapped as for several GPUs."""
    d, network = vector.arrays, vector.network
    kinds = {"Dense": "fc", "Conv2d": "conv", "ConvTranspose2d": "convT"}
    state = {f"module.classifier.{part}": d[f"readout_{part}"] for part in ("weight", "bias")}
    for i, c in enumerate(network.connections):
        layer = "network_x" if i == 0 else f"network_s{i}" if vector.n_hidden else "network_s"
        kind = f"module.{layer}.{kinds[type(c.synapse).__name__]}"
        if c.restriction:
            matrix = d["feedback_raw_weight"].reshape(len(d["feedback_raw_weight"]), -1)
            state |= {f"{kind}.weight_w": d["feedback_raw_weight"], f"{kind}.weight_g": d["feedback_alpha"]}
            state[f"{kind}.weight_v"] = np.linalg.svd(matrix)[2][0]
            continue
        state[f"{kind}.weight"] = d["feedback_effective_weight"] if c.name == "feedback" else d[f"{c.name}_weight"]
        if c.bias:
            state[f"{kind}.bias"] = d[f"{c.name}_bias"]
        if c.batch_norm:
            n = len(d[f"{c.name}_bias"])
            state |= {f"module.{layer}.bn.{part}": d[f"{c.name}_bn_{part}"] for part in ("weight", "bias")}
            for part, start in (("running_mean", np.zeros(n)), ("running_var", np.ones(n))):
                state[f"module.{layer}.bn.{part}"] = d.get(f"{c.name}_bn_{part}_before", start)
            state[f"module.{layer}.bn.num_batches_tracked"] = np.array(3)
    return {"epoch": 3, "state_dict": state}


@pytest.mark.parametrize("path", vectors())
def test_an_authors_checkpoint_runs_with_their_outputs(path):
    vector = Vector(path)
    d = vector.arrays
    network = edited(vector.network, replace(authors(1 + vector.n_hidden), one_power_step=False))
    params = authors_params(network, checkpoint(vector))
    frozen = freeze(network, params, vector.x, training=True)
    rates = simulate(frozen, vector.x, int(d["T"]))
    np.testing.assert_allclose(rates.of(network.populations[-1].name), d["rate"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(read_out(frozen, rates), d["logits"], rtol=0, atol=1e-12)


def test_alpha_is_clipped_unless_the_profile_clamps_it():
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(), restriction=Restriction(norm="kernel"))
    rng = np.random.default_rng(0)
    state = {f"network_x.bn.{part}": rng.random(4) for part in ("weight", "bias", "running_mean", "running_var")}
    state |= {"network_x.fc.weight": rng.random((4, 3)), "network_x.fc.bias": rng.random(4)}
    state |= {"network_s.fc.weight_w": rng.random((4, 4)), "network_s.fc.weight_v": rng.random(4)}
    state |= {
        "network_s.fc.weight_g": np.array(1.5),
        "classifier.weight": rng.random((2, 4)),
        "classifier.bias": rng.random(2),
    }
    found = authors_params(network, state)
    assert found["feedback.alpha"] == 1.0
    assert authors_params(edited(network, Profile(clamp_alpha=True)), state)["feedback.alpha"] == 1.5
    expected = {"input.weight": "network_x.fc.weight", "input.running_var": "network_x.bn.running_var"}
    assert all(same({"": found[ours]}, {"": state[theirs]}) for ours, theirs in expected.items())
    del state["network_s.fc.weight_g"]
    with pytest.raises(ValueError, match=r"the state has no network_s\.fc\.weight_g"):
        authors_params(network, state)
    state["network_s.fc.weight_g"] = np.ones(2)
    with pytest.raises(ValueError, match=r"feedback\.alpha"):
        authors_params(network, state)


def recorded(library):
    part = RECORDED[library]
    state = {name: np.array(value, np.float32) for name, value in part["state"].items()}
    return state, np.array(part["x"], np.float32), part["spikes"]


def spikes(network, params, x):
    return simulate(freeze(network, params), x[None], len(x), record=True).recording.s[0].tolist()


def test_a_recurrent_cell_of_snntorch_fires_its_spikes():
    state, x, theirs = recorded("snntorch")
    network, params = from_snntorch(state, linear="0", cell="1")
    assert network.neuron == Neuron(float(np.float32(0.9)), 1.0)
    assert params["recurrent.bias"].any()
    assert spikes(network, params, x) == theirs
    assert sum(map(sum, theirs)) > 20
    wide = np.zeros((2, 5), np.float32)
    _, with_readout = from_snntorch({**state, "2.weight": wide}, linear="0", cell="1", readout="2")
    assert with_readout["readout.bias"].tolist() == [0, 0]


def test_a_recurrent_cell_of_norse_fires_its_spikes_where_its_reset_is_that_of_step():
    state, x, theirs = recorded("norse")
    network, params = from_norse(state, cell="", tau_mem_inv=500, tau_syn_inv=1000, v_th=0.5)
    assert network.neuron == Neuron(0.5, 1.0)
    assert spikes(network, params, x) == theirs
    assert sum(map(sum, theirs)) == len(x)


def test_what_cannot_be_read_is_said():
    state, *_ = recorded("snntorch")
    for change, message in (
        ({"1.reset_mechanism_val": np.ones(())}, "reset_mechanism_val is 1.0; expected 0, reset by subtraction"),
        ({"1.beta": np.array([0.5, 0.9])}, "1.beta differs between neurons"),
        ({"0.weight": np.zeros((5, 3), np.float64)}, "parameters have dtypes"),
        ({"0.weight": np.array(["a"])}, "0.weight in the state is a ndarray; expected an array of real numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            from_snntorch({**state, **change}, linear="0", cell="1")
    with pytest.raises(ValueError, match=r"the state has no 3\.beta; it has 0\.bias, "):
        from_snntorch(state, linear="0", cell="3")
    with pytest.raises(ValueError, match="tau_syn_inv is 200; expected 1/dt = 1000"):
        from_norse(recorded("norse")[0], cell="", tau_mem_inv=100, tau_syn_inv=200, v_th=1.0)
    with pytest.raises(ValueError, match="state is of type list"):
        from_snntorch([], linear="0", cell="1")


@pytest.mark.parametrize(
    ("name", "structure", "input_shape", "neuron", "n_steps"),
    [("fc", "9 (F9)", (12,), LIF(0.9, 1.0), 15), ("ml", "4C3s-6C3-8C3s-8C3-6C3 (F4C3u)", (2, 8, 8), IF(0.5), 12)],
)
def test_a_state_dict_that_the_authors_program_wrote_gives_its_logits(name, structure, input_shape, neuron, n_steps):
    with np.load(Path(__file__).parent / f"ledger/files/authors-{name}.npz") as file:
        state = dict(file)
    x, logits = state.pop("x"), state.pop("logits")
    kernel = Restriction(norm="kernel")
    network = build(structure, input_shape=input_shape, n_classes=logits.shape[1], neuron=neuron, restriction=kernel)
    frozen = freeze(network, authors_params(network, state))
    np.testing.assert_allclose(read_out(frozen, simulate(frozen, x, n_steps)), logits, rtol=0, atol=1e-12)
