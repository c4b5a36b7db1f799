"""Exchange through NIR: exact round trips, what NIR cannot say, and everything that is refused."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import same

from ide_ref import IF, LIF, Connection, Dense, Network, Neuron, Population, Readout, build, freeze, simulate
from ide_ref import nir as exchange
from ide_ref.nir import READINGS, SAID, Reading, from_nir, load, save, to_nir
from ide_ref.synapses import AvgPool2d, Conv2d

nir = pytest.importorskip("nir")


def sayable(synapse):
    return type(synapse) in (Conv2d, AvgPool2d) or (type(synapse) is Dense and len(synapse.out_shape) == 1)


def with_sayable(network, params):
    """Without the connections that NIR has no node for."""
    kept = tuple(c for c in network.connections if sayable(c.synapse))
    network = replace(network, connections=kept)
    return network, {name: params[name] for name in network.parameter_shapes}


graphs = st.sampled_from([np.float32, np.float64]).flatmap(lambda dtype: cases(own_neurons=True, dtype=dtype))


@given(graphs)
def test_a_graph_comes_back_bit_for_bit(case):
    network, params = with_sayable(case.network, case.params)
    graph = to_nir(network, params)
    its, found = from_nir(graph)
    assert its == network
    assert same(found, params)
    again = to_nir(its, found)
    assert again.nodes.keys() == graph.nodes.keys()
    assert set(again.edges) == set(graph.edges)


@given(cases(own_neurons=True), st.sampled_from([1e-4, 1.0, 0.03]))
@settings(max_examples=8)
def test_a_file_comes_back_bit_for_bit(tmp_path_factory, case, dt):
    network, params = with_sayable(case.network, case.params)
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    save(path, network, params, dt=dt)
    its, found = load(path)
    assert its == network
    assert same(found, params)
    graph = nir.read(path, type_check=False)
    assert {key: graph.metadata[key] for key in SAID} == SAID
    assert graph.metadata["dt"] == repr(dt)


@given(graphs)
def test_what_has_no_node_is_refused_by_name(case):
    bad = [c.name for c in case.network.connections if not sayable(c.synapse)]
    if bad:
        with pytest.raises(ValueError, match=f"connection '{bad[0]}' is a (Dense into a picture|ConvTranspose2d)"):
            to_nir(case.network, case.params)


def chain():
    """Every kind of node, feedback of two populations to themselves, two neurons."""
    first = Conv2d.over((2, 4, 6), 3, kernel=3)
    pool = AvgPool2d.over(first.out_shape, kernel=2)
    network = Network(
        (2, 4, 6),
        (Population("a", first.out_shape), Population("b", pool.out_shape), Population("c", (5,), LIF(0.75, 0.5))),
        (
            Connection("in", "input", "a", first, bias=True),
            Connection("pool", "a", "b", pool),
            Connection("out", "b", "c", Dense(pool.out_shape, (5,)), bias=True),
            Connection("self", "c", "c", Dense((5,), (5,))),
            Connection("back", "b", "b", Conv2d.over(pool.out_shape, 3, kernel=1)),
        ),
        Readout("c", Dense((5,), (4,))),
        IF(1.0),
    )
    return network


def spikes(network, params, x, n_steps=12):
    return simulate(freeze(network, params), x, n_steps, record=True).recording


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_batch", [1, 4])
def test_read_by_its_nodes_alone_a_graph_fires_the_same_spikes(dtype, n_batch):
    network = chain()
    rng = np.random.default_rng(3)
    params = network.init(rng, dtype=dtype)
    its, found = from_nir(to_nir(network, params), reading=Reading(1e-4))
    order = [its.index(f"population_{p.name}") for p in network.populations]
    assert order == [0, 1, 2]  # without a cycle of several, the order follows from the edges
    assert [its.neurons[i] for i in order] == list(network.neurons)
    assert found["connection_in.weight"].tobytes() == params["in.weight"].tobytes()
    graph = to_nir(network, params)
    graph.infer_types()
    graph.check_types()
    x = rng.normal(0.5, 1, (n_batch, 2, 4, 6)).astype(dtype)
    ours, theirs = spikes(network, params, x), spikes(its, found, x)
    assert ours.s.any()
    for p in network.populations:
        np.testing.assert_array_equal(ours.spikes(p.name), theirs.spikes(f"population_{p.name}"))


def test_batch_norm_and_restrictions_are_folded_for_other_readers():
    network = build("6-5 (F6)", input_shape=(4,), n_classes=3, neuron=LIF(0.9, 1.0))
    rng = np.random.default_rng(5)
    params = network.init(rng)
    for part in ("bn_weight", "running_var"):
        params[f"input.{part}"] = rng.uniform(0.5, 2, 6)
    params["input.running_mean"], params["hidden1.bn_bias"] = rng.normal(size=6), rng.normal(size=5)
    its, found = from_nir(to_nir(network, params), reading=Reading(1e-4, order=("population_a1", "population_a2")))
    assert not any(c.batch_norm or c.restriction for c in its.connections)
    x = rng.normal(size=(3, 4))
    np.testing.assert_array_equal(spikes(its, found, x, 40).s, spikes(network, params, x, 40).s)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bias_and_normalisation_of_a_pooling_stand_in_a_node_behind_it(batch_norm):
    pool = AvgPool2d.over((2, 4, 4), kernel=2)
    connection = Connection("pool", "input", "a", pool, bias=True, batch_norm=batch_norm)
    readout = Readout("a", Dense(pool.out_shape, (3,)))
    network = Network((2, 4, 4), (Population("a", pool.out_shape),), (connection,), readout, IF(1.0))
    rng = np.random.default_rng(2)
    params = network.init(rng)
    params |= {name: rng.uniform(0.5, 2, 2) for name in params if name.startswith("pool.")}
    graph = to_nir(network, params)
    x = rng.normal(size=(1, 2, 4, 4))
    pooled = x.reshape(2, 2, 2, 2, 2).mean((2, 4))
    node = graph.nodes["after_pool"]
    found = np.einsum("oi,ihw->ohw", node.weight[:, :, 0, 0], pooled) + node.bias[:, None, None]
    ours = freeze(network, params).drive(x).reshape(2, 2, 2).transpose(2, 0, 1)
    np.testing.assert_allclose(found, ours, rtol=1e-13)
    assert ("connection_pool", "after_pool") in graph.edges


@pytest.mark.parametrize(
    ("node", "reading", "leak", "v_th"),
    [
        # Euler: dv = dt/τ (−v + r I): λ = 1 − 1/4, g = r/4.
        (nir.LIF(*(np.full(1, v) for v in (4.0, 2.0, 0.0, 3.0))), Reading(1.0), 0.75, 6.0),
        (nir.LIF(*(np.full(1, v) for v in (4.0, 2.0, 0.0, 3.0))), Reading(1.0, gain="damped"), 0.75, 12.0),
        (nir.LIF(*(np.full(1, v) for v in (4.0, 2.0, 0.0, 3.0))), Reading(1.0, gain="one"), 0.75, 3.0),
        # Exact: λ = e^(−1/τ) = 1/2, g = r (1 − λ).
        (nir.LIF(*(np.full(1, v) for v in (1 / np.log(2), 4.0, 0.0, 3.0))), Reading(1.0, "exponential"), 0.5, 1.5),
        (nir.IF(np.full(1, 4.0), np.full(1, 3.0)), Reading(0.5), 1.0, 1.5),
        (nir.IF(np.full(1, 4.0), np.full(1, 3.0)), Reading(0.5, gain="damped"), 1.0, 3.0),
    ],
)
def test_the_map_of_neurons_is_that_of_the_page(node, reading, leak, v_th):
    its, _ = from_nir(one_neuron(node), reading=reading)
    assert (its.neurons[0].leak, its.neurons[0].v_th) == pytest.approx((leak, v_th), rel=1e-15)


@given(leak=st.floats(0.01, 1), v_th=st.floats(0.1, 10), dt=st.sampled_from([1e-4, 1e-3, 1.0, 7.0]))
def test_leak_and_threshold_survive_to_rounding_without_metadata(leak, v_th, dt):
    network = replace(build("1", input_shape=(1,), n_classes=1, neuron=IF()), neuron=Neuron(leak, v_th))
    params = network.init(np.random.default_rng(0))
    its, _ = from_nir(to_nir(network, params, dt=dt), reading=Reading(dt))
    assert its.neuron.leak == pytest.approx(leak, abs=1e-15)
    assert its.neuron.v_th == pytest.approx(v_th, rel=1e-14)


def one_neuron(node=None, weight=None, **more):
    """input to dense to a neuron to output, and more nodes."""
    node = nir.IF(np.ones(1), np.ones(1)) if node is None else node
    nodes = {
        "in": nir.Input(np.array([2])),
        "w": nir.Linear(np.ones((1, 2)) if weight is None else weight),
        "n": node,
        "out": nir.Output(np.array([1])),
        **more,
    }
    return nir.NIRGraph(nodes, [("in", "w"), ("w", "n"), ("n", "out")], type_check=False)


def with_edges(graph, *edges):
    graph.edges += edges
    return graph


def replace_edge(graph, old, new):
    """With a second convolution, ``x``, at the end of a new edge."""
    graph.edges[graph.edges.index(old)] = new
    graph.nodes["x"] = graph.nodes["w"]
    return graph


def linear():
    return nir.Linear(np.ones((1, 1)))


def conv(**changes):
    """A picture into a convolution into neurons."""
    fields = {
        "input_shape": None, "weight": np.ones((1, 1, 3, 3)), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1),
        "groups": 1, "bias": np.zeros(1),
    }  # fmt: skip
    graph = one_neuron(nir.IF(np.ones((1, 4, 4)), np.ones((1, 4, 4))))
    graph.nodes |= {"in": nir.Input(np.array([1, 4, 4])), "w": nir.Conv2d(**(fields | changes))}
    graph.nodes["out"] = nir.Output(np.array([16]))
    return graph


ONE = Reading(1.0)
REFUSED = {
    "unknown node": (lambda: one_neuron(nir.CubaLIF(*[np.ones(1)] * 5)), "node 'n' is a CubaLIF"),
    "delay": (lambda: one_neuron(x=nir.Delay(np.ones(1))), "node 'x' is a Delay"),
    "cycle of linear nodes": (
        lambda: with_edges(one_neuron(x=linear(), y=linear()), ("x", "y"), ("y", "x")),
        "nodes '[xy]' to '[xy]' to '[xy]' form a cycle without delay",
    ),
    "linear twice": (
        lambda: with_edges(one_neuron(x=linear(), m=nir.IF(np.ones(1), np.ones(1))), ("n", "x"), ("x", "w")),
        "node 'w' has 2 edges into it",
    ),
    "two linear nodes": (
        lambda: with_edges(one_neuron(x=linear(), y=linear()), ("n", "x"), ("x", "y"), ("y", "n")),
        "nodes 'x' and 'y' are both linear",
    ),
    "no weights": (lambda: with_edges(one_neuron(), ("n", "n")), "node 'n' is reached from 'n' without weights"),
    "two inputs": (lambda: one_neuron(x=nir.Input(np.array([2]))), "2 nodes Input"),
    "two outputs": (lambda: one_neuron(x=nir.Output(np.array([2]))), "2 nodes Output"),
    "shape of weights": (lambda: one_neuron(weight=np.ones((1, 3))), r"node 'w' has weights \(1, 3\)"),
    "shape of neurons": (
        lambda: one_neuron(nir.IF(np.ones(3), np.ones(3)), out=nir.Output(np.array([3]))),
        r"connection 'w' goes into 'n'",
    ),
    "shape of the output": (lambda: one_neuron(weight=np.ones((2, 2))), "node 'out' has shape"),
    "integers": (lambda: one_neuron(weight=np.ones((1, 2), int)), "node 'w' has weight of int64"),
    "complex": (lambda: one_neuron(weight=np.ones((1, 2), complex)), "node 'w' has weight of complex128"),
    "half": (lambda: one_neuron(weight=np.ones((1, 2), np.float16)), "node 'w' has weight of float16"),
    "two dtypes": (
        lambda: with_edges(one_neuron(x=nir.Linear(np.ones((1, 1), np.float32))), ("n", "x"), ("x", "n")),
        "node 'x' has weight of float32; expected float64",
    ),
    "not finite": (lambda: one_neuron(weight=np.array([[1.0, np.nan]])), "node 'w' has weight that is NaN"),
    "v_leak": (lambda: one_neuron(nir.LIF(*[np.ones(1)] * 4)), "node 'n' has v_leak 1"),
    "v_reset": (lambda: one_neuron(nir.IF(*[np.ones(1)] * 3)), "node 'n' has v_reset 1"),
    "neurons that differ": (
        lambda: one_neuron(nir.IF(np.ones(2), np.array([1.0, 2.0])), weight=np.ones((2, 2))),
        "node 'n' has v_threshold that differs",
    ),
    "threshold": (lambda: one_neuron(nir.IF(np.ones(1), -np.ones(1))), "node 'n' has no neuron of .STEP.: v_th"),
    "leak": (
        lambda: one_neuron(nir.LIF(np.full(1, 0.5), *(np.full(1, v) for v in (1.0, 0.0, 1.0)))),
        "node 'n' has leak -1 .* another reading",
    ),
    "no edge": (lambda: with_edges(one_neuron(), ("n", "z")), "end 'z' that is no node"),
    "an edge twice": (lambda: with_edges(one_neuron(), ("w", "n")), "edge 'w' to 'n' stands twice"),
    "dilation": (lambda: conv(dilation=(2, 2)), "node 'w' has dilation 2"),
    "groups": (lambda: conv(groups=2), "node 'w' has groups 2"),
    "stride": (lambda: conv(stride=(1, 2)), "node 'w' has stride"),
    "padding": (lambda: conv(padding=(0, 1)), "node 'w' has padding"),
    "same padding with stride": (lambda: conv(padding="same", stride=(2, 2)), "node 'w' has padding 'same'"),
    "kernel": (lambda: conv(weight=np.ones((1, 1, 3, 2))), "node 'w' has weights"),
    "channels": (lambda: conv(weight=np.ones((1, 2, 3, 3))), "node 'w' has weights"),
    "picture": (lambda: conv(input_shape=(5, 5)), "node 'w' is for pictures"),
    "kernel too large": (lambda: conv(weight=np.ones((1, 1, 9, 9)), padding="valid"), "node 'w' does not fit"),
    "two edges into a node that passes on": (
        lambda: with_edges(
            one_neuron(x=linear(), f=nir.Flatten(None, 0, -1)), ("n", "x"), ("n", "f"), ("x", "f"), ("f", "n")
        ),
        "node 'f' has 2 edges into it",
    ),
    "two edges into the output": (
        lambda: with_edges(
            one_neuron(x=linear(), m=nir.IF(np.ones(1), np.ones(1))), ("n", "x"), ("x", "m"), ("m", "out")
        ),
        "node 'out' has 2 edges into it",
    ),
    "a convolution as readout": (
        lambda: with_edges(replace_edge(conv(), ("n", "out"), ("n", "x")), ("x", "out")),
        "node 'x', before the output, is a Conv2d; expected a dense one",
    ),
    "tau": (
        lambda: one_neuron(nir.LIF(*(np.full(1, v) for v in (0.0, 1.0, 0.0, 1.0)))),
        "node 'n' has tau 0; expected a positive number",
    ),
    "weights that join": (
        lambda: with_edges(one_neuron(x=linear()), ("n", "x"), ("x", "n"), ("x", "out")),
        "node 'x' has 2 edges out of it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_the_name_of_the_node(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        from_nir(make(), reading=ONE)


def test_a_graph_without_metadata_needs_a_reading():
    with pytest.raises(ValueError, match=r"leaves open what .* one of snntorch, .* reset: by subtraction .* equality"):
        from_nir(one_neuron())
    with pytest.raises(ValueError, match="reading is 'brian'"):
        from_nir(one_neuron(), reading="brian")
    assert from_nir(one_neuron(), reading="sinabs")[0].neuron == IF(1.0)
    assert set(READINGS) == {"snntorch", "spikingjelly", "norse", "sinabs"}


def test_a_cycle_of_several_neurons_needs_their_order():
    network = build("3-2 (F3)", input_shape=(2,), n_classes=2, neuron=IF(1.0), batch_norm=False, restriction=None)
    rng = np.random.default_rng(8)
    params = {name: np.abs(value) for name, value in network.init(rng).items()}
    graph = to_nir(network, params)
    with pytest.raises(ValueError, match="form a cycle, and which edge of it brings the spikes of the step before"):
        from_nir(graph, reading=Reading(1e-4))
    with pytest.raises(ValueError, match="order is"):
        from_nir(graph, reading=Reading(1e-4, order=("population_a1",)))
    x = rng.uniform(0, 2, (2, 2))
    first, second = (
        from_nir(graph, reading=Reading(1e-4, order=order))
        for order in (("population_a1", "population_a2"), ("population_a2", "population_a1"))
    )
    # The two orders are two networks: which spikes come a step late differs.
    found = [spikes(*read, x, 30).spikes("population_a2") for read in (first, second)]
    assert (found[0] == spikes(network, params, x, 30).spikes("a2")).all()
    assert (found[0] != found[1]).any()


def test_pass_through_nodes_and_inner_graphs_are_read():
    inner = nir.NIRGraph(
        {"input": nir.Input(np.array([2])), "lif": nir.IF(np.ones(2), np.ones(2)),
         "w_rec": nir.Affine(np.eye(2), np.zeros(2)), "output": nir.Output(np.array([2]))},
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    )  # fmt: skip
    graph = nir.NIRGraph(
        {"in": nir.Input(np.array([1, 1, 2])), "flat": nir.Flatten({"input": np.array([1, 1, 2])}, 0, -1),
         "w": nir.Linear(np.eye(2)), "rnn": inner, "out": nir.Output(np.array([2]))},
        [("in", "flat"), ("flat", "w"), ("w", "rnn"), ("rnn", "out")],
    )  # fmt: skip
    network, params = from_nir(graph, reading=ONE)
    assert [(c.source, c.target) for c in network.connections] == [("input", "rnn.lif"), ("rnn.lif", "rnn.lif")]
    assert network.input_shape == (1, 1, 2)
    assert params["readout.weight"].tolist() == np.eye(2).tolist()


def test_a_changed_node_is_told_and_can_be_read_as_it_stands():
    network = build("3 (F3)", input_shape=(2,), n_classes=2, neuron=LIF(0.9, 1.0))
    params = network.init(np.random.default_rng(0))
    for change in ("tau", "v_threshold"):
        graph = to_nir(network, params)
        getattr(graph.nodes["population_a1"], change)[:] *= 1.5
        with pytest.raises(ValueError, match="node 'population_a1' is not what the metadata"):
            from_nir(graph)
        assert from_nir(graph, reading=Reading(1e-4))[0].neuron != network.neuron
    graph = to_nir(network, params)
    graph.nodes["population_a1"].tau = graph.nodes["population_a1"].tau.astype(np.float32)
    with pytest.raises(ValueError, match="node 'population_a1' is not what the metadata"):
        from_nir(graph)
    graph = to_nir(network, params)
    graph.nodes["connection_input"].weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="node 'connection_input' is not what"):
        from_nir(graph)
    graph = to_nir(network, params)
    graph.edges.remove(("connection_feedback", "population_a1"))
    with pytest.raises(ValueError, match="edge 'connection_feedback' to 'population_a1' is not"):
        from_nir(graph)
    graph = to_nir(network, params)
    graph.nodes["connection_input"].metadata.clear()
    with pytest.raises(ValueError, match="do not fit"):
        from_nir(graph)


def test_neurons_that_only_the_metadata_have_take_no_memory():
    network = build("3 (F3)", input_shape=(2,), n_classes=2, neuron=LIF(0.9, 1.0), batch_norm=False)
    graph = to_nir(network, network.init(np.random.default_rng(0)))
    said = json.loads(graph.metadata["ide_ref"])
    said["network"]["populations"].append({"name": "b", "shape": [10**13]})
    graph.nodes["population_b"] = graph.nodes["population_a1"]
    graph.metadata["ide_ref"] = json.dumps(said)
    with pytest.raises(ValueError, match=r"population 'b' has shape \(10000000000000,\), but its node another"):
        from_nir(graph)


def test_the_pages_readings_are_those_of_the_module():
    page = (Path(__file__).parent.parent / "docs/nir.md").read_text()
    rows = re.findall(r'^\| `"(\w+)"` \| (\S+) \| (\w+) \| (\w+) \|', page, re.M)
    assert {name: Reading(float(dt), decay, gain) for name, dt, decay, gain in rows} == READINGS


def test_what_nirs_own_check_adds_does_not_matter():
    network = chain()
    network = replace(network, populations=(*network.populations, Population("idle", (2,))))
    params = network.init(np.random.default_rng(0))
    graph = to_nir(network, params)
    graph.infer_types()
    assert "output_population_idle" in graph.nodes
    assert from_nir(graph)[0] == network


@pytest.mark.parametrize("said", ["", "[" * 100_000, "{}", '{"format": 2}', '{"format": 1, "dt": "x", "network": {}}'])
def test_metadata_that_say_nothing_are_refused(said):
    graph = to_nir(*(lambda net: (net, net.init(np.random.default_rng(0))))(chain()))
    graph.metadata["ide_ref"] = said
    with pytest.raises(ValueError, match="the graph and its metadata 'ide_ref' do not fit"):
        from_nir(graph)


def test_files_that_are_none_are_refused_by_name(tmp_path):
    import h5py

    path = tmp_path / "x.nir"
    with pytest.raises(ValueError, match=r"x\.nir: cannot be read as a NIR graph"):
        load(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"x\.nir: cannot be read as a NIR graph"):
        load(path)
    nir.write(path, one_neuron())
    with h5py.File(path, "a") as file:
        del file["node/nodes/n/type"]
        file["node/nodes/n/type"] = "Izhikevich"
    with pytest.raises(ValueError, match=r"x\.nir: .*node 'n' is a Izhikevich"):
        load(path, reading=ONE)


def test_wrong_arguments_are_named():
    network = chain()
    params = network.init(np.random.default_rng(0))
    for make, message in (
        (lambda: to_nir(network, params, dt=0), "dt is 0"),
        (lambda: Reading(-1.0), "dt is -1.0"),
        (lambda: Reading(1.0, "heun"), "decay is 'heun'"),
        (lambda: Reading(1.0, gain="two"), "gain is 'two'"),
        (lambda: from_nir({}), "graph is of type dict"),
        (lambda: from_nir(one_neuron(), reading=3), "reading is of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    slashed = replace(
        network, populations=(Population("a/b", (5,)),), connections=(), readout=Readout("a/b", network.readout.synapse)
    )
    with pytest.raises(ValueError, match="name 'a/b' cannot name a node"):
        to_nir(slashed, slashed.init(np.random.default_rng(0)))


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ModuleNotFoundError, match="pip install nir"):
        exchange.from_nir(None)
