"""Memory, activity and angles: what is told of a step, a network and its gradients."""

import json
import re
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from graphs import dense_matrix, flat_or_image, synapses_between
from hypothesis import given
from hypothesis import strategies as st

import ide_ref
from ide_ref import (
    IF,
    LIF,
    NotConverged,
    Surrogate,
    backward,
    backward_through_time,
    cross_entropy,
    find_equilibrium,
    freeze,
    presets,
    read_out,
    simulate,
)
from ide_ref.cli import main
from ide_ref.datasets import Dataset
from ide_ref.measure import activity, angles, memory
from ide_ref.presets import Preset
from ide_ref.synapses import AvgPool2d
from ide_ref.training import evaluation, loop


def test_a_pooled_neuron_reaches_its_own_channel_alone():
    found = activity.receivers(AvgPool2d.over((3, 4, 4), kernel=2))
    np.testing.assert_array_equal(found, np.ones(48))


def conv(**changes):
    recipe = tiny.preset(**{"crop": 0, "n_steps": 4, **changes}).recipe
    return Preset("tiny-conv", "2C3s-3C3 (F2C3)", (1, 8, 8), 10, LIF(0.9), 0.2, recipe)


@given(shapes=st.tuples(flat_or_image(), flat_or_image()), data=st.data())
def test_a_neurons_receivers_are_the_column_of_its_matrix(shapes, data):
    synapse = data.draw(st.sampled_from(synapses_between(*shapes, False)))
    weight = np.random.default_rng(0).uniform(1, 2, synapse.weight_shape) if synapse.weight_shape else None
    found = activity.receivers(synapse)
    np.testing.assert_array_equal(found, np.count_nonzero(dense_matrix(synapse, weight), axis=0))
    assert found.sum() == synapse.n_multiplications


@pytest.mark.parametrize("neuron", [IF(), LIF(0.9)])
def test_operations_are_the_spikes_times_what_they_reach(neuron, monkeypatch):
    monkeypatch.setattr(activity, "ROOM", 4 * 4 * 7)  # so that several batches are simulated
    preset, data = replace(conv(), neuron=neuron), tiny.data(20)
    params = loop.begin(preset, 3).params
    params["input.bias"] = params["input.bias"] + 1
    found = activity.measure_activity(preset, params, data)
    x, _ = evaluation.load_batch(preset, data, "test", np.arange(20))
    s = simulate(freeze(preset.network, params), x, 4, record=True).recording.s.astype(float)
    net = preset.network
    for c, (source, _) in zip(net.connections, net.edges, strict=True):
        if source < 0:
            continue
        reached = dense_matrix(c.synapse, np.ones(c.synapse.weight_shape))
        sent = s[:, :-1] if c.name == "feedback" else s
        expected = (sent[:, :, net.slice_of(source)] @ reached.T).sum() / 20
        assert found.operations[c.name] == pytest.approx(expected, rel=1e-12)
        assert expected > 0
    assert set(found.operations) | set(found.multiplications) == {*(c.name for c in net.connections), "readout"}
    assert found.multiplications == {"input": net.connections[0].synapse.n_multiplications, "readout": 48 * 10}
    rates = evaluation.evaluate(preset, params, data).firing_rates
    assert found.firing_rates == pytest.approx(rates)
    assert found.firing_rate == pytest.approx(s.mean())
    assert found.neuron_updates == 4 * net.state_size
    assert found.dense_multiplications == net.n_multiplications + 480
    additions, products = sum(found.operations.values()), sum(found.multiplications.values())
    assert found.energy["synapses"] == pytest.approx(0.9 * additions + 4.6 * products)
    assert found.energy["neurons"] == pytest.approx((0.9 if neuron.leak == 1 else 4.6) * 4 * net.state_size)
    assert found.energy["dense"] == pytest.approx(4.6 * found.dense_multiplications)
    name = "IF" if neuron.leak == 1 else "LIF"
    energy = [f"{found.energy[part] / 1e6:.3f} uJ of" for part in ("synapses", "neurons", "dense")]
    assert found.table().splitlines() == [
        f"tiny-conv ({name}, gradient by ide), T = 4, 20 samples; spikes per neuron and step",
        *(f"  {p:<8} {rate:.4f}" for p, rate in [*found.firing_rates.items(), ("total", found.firing_rate)]),
        "per sample, in millions",
        *(f"  {c:<12} {count / 1e6:>10.3f} additions" for c, count in found.operations.items()),
        *(f"  {c:<12} {count / 1e6:>10.3f} multiply-adds" for c, count in found.multiplications.items()),
        f"  neurons      {found.neuron_updates / 1e6:>10.3f} updates",
        f"  dense pass   {found.dense_multiplications / 1e6:>10.3f} multiply-adds",
        f"energy in 45 nm: {energy[0]} synapses, {energy[1]} neurons; {energy[2]} the dense pass",
    ]
    assert found.to_dict()["energy"] == found.energy
    fewer = replace(data, x_train=data.x_test[:9], y_train=data.y_test[:9])
    assert activity.measure_activity(preset, params, fewer, split="train").n_samples == 9


def test_events_of_an_input_are_operations_too():
    rng = np.random.default_rng(0)
    x = (rng.random((6, 4, 1, 8, 8)) < 0.2) * rng.integers(1, 4, (6, 4, 1, 8, 8))
    data = Dataset.from_arrays(x, np.arange(6) % 2, x[:5], np.arange(5) % 2, name="events", spikes=True)
    recipe = tiny.preset(input="spikes", n_steps=4, mean=(0.0,), std=(1.0,), crop=0).recipe
    preset = Preset("events", "2C3s (F2C3)", (1, 8, 8), 2, IF(), 0.0, recipe)
    found = activity.measure_activity(preset, loop.begin(preset, 0).params, data)
    synapse = preset.network.connections[0].synapse
    reached = dense_matrix(synapse, np.ones(synapse.weight_shape))
    # An event of any size is sent once.
    expected = ((x[:5].reshape(5, 4, 64) > 0) @ reached.T).sum() / 5
    assert found.operations["input"] == pytest.approx(expected)
    assert set(found.multiplications) == {"readout"}


def test_angles_of_known_gradients():
    right, up = {"a": np.array([2.0, 0.0]), "b": np.zeros(1)}, {"a": np.array([0.0, 3.0]), "b": np.zeros(1)}
    slightly = {"a": np.array([5.0, 5e-9]), "b": np.zeros(1)}
    back = {"a": np.array([-1.0, 1.0]), "b": np.zeros(1)}
    assert angles._angle(right, up) == pytest.approx(90)
    assert angles._angle(right, right) == 0
    assert angles._angle(right, slightly) == pytest.approx(np.degrees(1e-9))
    assert angles._angle(right, back) == pytest.approx(135)
    assert angles._angle(right, {"a": -right["a"], "b": np.zeros(1)}) == pytest.approx(180)
    assert np.isnan(angles._angle({"b": np.zeros(1)}, {"b": np.ones(1)}))
    # Neither the size nor its rounding matters.
    small = {name: 1e-3 * value for name, value in slightly.items()}
    assert angles._angle(small, {"a": right["a"] / 1e6, "b": np.zeros(1)}) == pytest.approx(np.degrees(1e-9))
    for u in np.random.default_rng(0).normal(size=(50, 3)):
        assert angles._angle({"a": u}, {"a": -3 * u}) == pytest.approx(180)
        assert angles._angle({"a": u}, {"a": 3 * u}) == pytest.approx(0, abs=1e-13)


SURROGATES = (Surrogate("triangle", 0.7), Surrogate("sigmoid"))


def measured(preset, params, **options):
    x, y = evaluation.load_batch(preset, tiny.data(), "train", np.arange(12))
    return x, y, angles.measure_angles(preset, params, x, y, surrogates=SURROGATES, seed=4, **options)


def test_angles_are_between_the_gradients_of_the_public_functions(monkeypatch):
    preset = tiny.preset(tol=1e-3, max_iter=77, label_smoothing=0.1)
    params = loop.begin(preset, 0).params
    asked = []
    for function in (find_equilibrium, backward):
        asks = partial(
            lambda function, *given, **options: asked.append(options) or function(*given, **options), function
        )
        monkeypatch.setattr(angles, function.__name__, asks)
    x, y, found = measured(preset, params, through_reset=False)
    theta = {name: value.astype(np.float64) for name, value in params.items()}
    x = x.astype(np.float64)
    frozen = freeze(preset.network, theta, x, training=True, rng=np.random.default_rng(4))

    def logits(state):
        return cross_entropy(read_out(frozen, state), y, label_smoothing=0.1)[1]

    rates, state = simulate(frozen, x, 3, record=True), find_equilibrium(frozen, x)
    # Newton's method goes on from the rates, to rounding; the implicit gradient is the recipe's.
    np.testing.assert_array_equal(asked[0].pop("start"), rates.a)
    assert asked == [
        {"method": "newton", "max_iter": 60},
        {"solver": "gmres", "tol": 1e-12, "max_iter": 5000},
        {"solver": preset.recipe.solver, "tol": 1e-3, "max_iter": 77, "allow_unconverged": True},
    ]
    gradients = {
        "exact": backward(frozen, state, logits(state), solver="direct").gradients,
        "ide": backward(frozen, rates, logits(rates), tol=1e-3).gradients,
    }
    for s in SURROGATES:
        back = backward_through_time(frozen, x, rates, logits(rates), surrogate=s, through_reset=False)
        gradients[f"stbp {s.name}"] = back.gradients
    flat = {name: np.concatenate([g.ravel() for g in parts.values()]) for name, parts in gradients.items()}
    assert list(found.norms) == list(flat)
    for a, u in flat.items():
        assert found.norms[a] == pytest.approx(np.linalg.norm(u), rel=1e-11)
        for b, v in flat.items():
            if a != b:
                v = np.concatenate([gradients[b][part].ravel() for part in gradients[a]])
                cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                assert found.degrees[a][b] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)
    u, v = (gradients[name]["feedback.weight"].ravel() for name in ("ide", "exact"))
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert found.by_parameter["ide"]["feedback.weight"] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)
    assert np.isnan(found.by_parameter["stbp sigmoid"]["input.bias"])  # before a normalisation by the batch
    head, *rows = angles.table([found]).splitlines()
    assert head == "after 0 batches: degrees to exact, to ide; norm"
    for name, row in zip(flat, rows, strict=True):
        told = [f"{found.degrees[other][name]:.2f}" for other in ("exact", "ide") if other != name]
        assert row.split() == [*name.split(), *told, f"{found.norms[name]:.3e}"]


def test_without_an_equilibrium_there_is_no_exact_gradient(monkeypatch):
    def lost(*args, **options):
        raise NotConverged("nowhere")

    monkeypatch.setattr(angles, "find_equilibrium", lost)
    preset = tiny.preset()
    *_, found = measured(preset, loop.begin(preset, 0).params)
    assert found.problem == "nowhere"
    assert list(found.norms) == ["ide", "stbp triangle", "stbp sigmoid"]
    assert angles.table([found]).splitlines()[-1] == "  nowhere"


@pytest.mark.parametrize("method", ["ide", "stbp"])
def test_angles_over_training_are_those_of_its_states(tmp_path, method):
    preset, data = tiny.preset(method=method), tiny.data()
    found = angles.angles_over_training(preset, data, [12, 0, 2], n_samples=12, surrogates=SURROGATES, seed=4)
    assert [one.batches for one in found] == [0, 2, 12]
    states = {0: loop.begin(preset, 4)}

    def keep(state, event):
        if event == "step":
            states[state.epoch * tiny.N_BATCHES + state.step] = state

    loop.train(preset, data, out=tmp_path, seed=4, callback=keep)
    for one in found:
        other = measured(preset, states[one.batches].params, batches=one.batches)[2]
        assert one.to_dict() == other.to_dict()


def test_before_a_training_none_is_begun(monkeypatch):
    monkeypatch.setattr(angles, "train", lambda *given, **options: pytest.fail("a training"))
    (found,) = angles.angles_over_training(tiny.preset(), tiny.data(), [0], n_samples=6)
    assert list(found.norms) == ["exact", "ide", "stbp rectangle"]


@pytest.mark.parametrize("after", [[], [13], [-1], [0.5]])
def test_batches_beyond_the_training_are_refused(after):
    with pytest.raises(ValueError, match=r"after is .*expected"):
        angles.angles_over_training(tiny.preset(), tiny.data(), after)


def test_arrays_of_a_step_grow_by_the_recording_alone():
    """In this process, without its kernels' loading: bytes of two T, for both methods."""
    found = {}
    for method in memory.METHODS:
        for t in (5, 25):
            preset = replace(conv(method=method), structure="8C3 (F8C3)", recipe=conv(method=method, n_steps=t).recipe)
            about = {"preset": preset.to_dict(), "batch_size": 64, "seed": 0, "count_arrays": True}
            try:
                found[method, t] = memory._measure(about)["arrays"]
            finally:
                tracemalloc.stop()
    per_step = 64 * 8 * 64 * 5  # B n (1 + 4)
    assert found["stbp", 25] - found["stbp", 5] == pytest.approx(20 * per_step, rel=0.02)
    assert abs(found["ide", 25] - found["ide", 5]) < per_step
    assert 5 * per_step < found["stbp", 5]


def test_each_t_is_measured_also_of_a_recipe_whose_time_steps_grow(monkeypatch):
    asked = []

    def measured(about):
        recipe = about["preset"]["recipe"]
        asked.append((recipe["n_steps"], recipe["first_steps"]))
        return {"arrays": 1} if about["count_arrays"] else {"resident": 2, "idle": 1}

    monkeypatch.setattr(memory, "_in_its_own_process", measured)
    memory.step_memory(tiny.preset(n_steps=9, first_steps=4), [2, 6], methods=["ide"])
    assert set(asked) == {(2, None), (6, None)}


def test_memory_is_that_of_another_process():
    about = {"preset": tiny.preset(method="stbp").to_dict(), "batch_size": 4, "seed": 0, "count_arrays": False}
    found = memory._in_its_own_process(about)
    assert found["resident"] >= found["idle"] > 20 << 20
    with pytest.raises(RuntimeError, match=r"a training step in a process of its own: .*KeyError"):
        memory._in_its_own_process({})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: memory.step_memory(p, [3], methods=["bptt"]), "methods is"),
        (lambda p: memory.step_memory(p, [3], methods=[]), "methods is"),
        (lambda p: activity.measure_activity(p, {}, tiny.data(), split="all"), "split is 'all'; expected"),
        (lambda p: activity.measure_activity(p, {}, None), "data is of type NoneType; expected Dataset"),
        (lambda p: activity.measure_activity(None, {}, tiny.data()), "preset is of type NoneType; expected Preset"),
        (lambda p: angles.measure_angles(None, {}, None, None), "preset is of type NoneType; expected Preset"),
        (lambda p: angles.measure_angles(p, {}, None, None), "missing"),
        (lambda p: angles.measure_angles(p, {}, None, None, surrogates=["x"]), "surrogate is of type str; expected"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny.preset())


def test_the_three_commands(monkeypatch, capsys):
    monkeypatch.setitem(presets._TABLE, "tiny", tiny.preset(epochs=1))
    monkeypatch.setattr("ide_ref.cli._common.PRESETS", ("tiny",))
    in_process = {"resident": 3, "idle": 2, "arrays": 1}
    monkeypatch.setattr(
        memory,
        "_in_its_own_process",
        lambda about: {n: v for n, v in in_process.items() if (n == "arrays") == about["count_arrays"]},
    )

    def call(*words):
        assert main(["measure", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = call("memory", "tiny", "--times", "2,3", "--batch-size", "4", "--dtype", "float64")["memory"]
    assert [(one["method"], one["n_steps"]) for one in found] == [("ide", 2), ("ide", 3), ("stbp", 2), ("stbp", 3)]
    assert found[-1]["recording"] == 4 * 3 * 8 * 9
    assert call("activity", "tiny", "--limit", "7")["n_samples"] == 7
    found = call("angles", "tiny", "--samples", "6", "--surrogate", "sigmoid", "--detach-reset")
    assert (found["samples"], found["through_reset"], len(found["angles"])) == (6, False, 1)
    found = call("angles", "tiny", "--after", "0,2", "--method", "stbp", "--limit", "50", "--surrogate", "sigmoid")
    assert [one["batches"] for one in found["angles"]] == [0, 2]
    for wrong in (
        ["angles", "tiny", "--method", "stbp"],
        ["angles", "tiny", "--after", "x"],
        ["memory", "tiny", "--times", "0"],
    ):
        assert main(["measure", *wrong]) == 2
        assert "expected" in capsys.readouterr().err


PAGE = Path(ide_ref.__file__).parents[1] / "docs/backpropagation-through-time.md"


def test_the_pages_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    exec(compile(code, PAGE.name, "exec"), {})
    assert 0 < int(capsys.readouterr().out.split()[0]) < 60
