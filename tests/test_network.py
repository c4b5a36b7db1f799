"""Networks, parameters and structure strings: what is built, and every refusal."""

import re
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from graphs import apply, cases
from hypothesis import assume, given
from hypothesis import strategies as st

import ide_ref
from ide_ref import IF, LIF, Connection, Dense, Readout, Restriction, build, constraints, equations, freeze, simulate
from ide_ref import maps as maps_module
from ide_ref.authors import PAPER, Profile, edited
from ide_ref.constraints import EPSILON
from ide_ref.network import check_norm, finite
from ide_ref.norms import Norm
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d, to_channels_last


def make(*connections, populations=(("a", (4,)), ("b", (3,))), readout=None):
    return ide_ref.Network(
        (2,),
        tuple(ide_ref.Population(name, shape) for name, shape in populations),
        connections,
        readout or Readout("b", Dense((3,), (2,))),
        IF(),
    )


def layer(**options):
    return build("4 (F4)", input_shape=(3,), n_classes=2, neuron=LIF(), **options)


def picture(**options):
    return build("3C3 (F3C3)", input_shape=(1, 5, 4), n_classes=2, neuron=LIF(), **options)


GOOD = Connection("in", "input", "a", Dense((2,), (4,)))


@pytest.mark.parametrize(
    ("name", "source", "target", "sizes", "message"),
    [
        ("x", "a", "b", (5, 3), "connection 'x' goes from 'a' with shape (5,), but that has (4,)"),
        ("x", "a", "b", (4, 5), "connection 'x' goes into 'b' with shape (5,), but that has (3,)"),
        ("x", "input", "a", (3, 4), "connection 'x' goes from 'input' with shape (3,), but that has (2,)"),
        ("x", "c", "b", (4, 3), "connection 'x' goes from 'c', which is no population"),
        ("x", "a", "c", (4, 3), "connection 'x' ends in 'c', which is no population"),
        ("x", "a", "input", (4, 2), "connection 'x' ends in 'input', which is no population"),
        ("in", "a", "b", (4, 3), "connection name 'in' is used twice or reserved"),
        ("readout", "a", "b", (4, 3), "connection name 'readout' is used twice or reserved"),
    ],
)
def test_connections_that_do_not_fit_are_named(name, source, target, sizes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(GOOD, Connection(name, source, target, Dense(sizes[:1], sizes[1:])))


def test_populations_and_readouts_that_do_not_fit_are_named():
    pool = Connection("p", "a", "a", AvgPool2d((1, 2, 2), (1, 2, 2), 1, 1, 0), restriction=Restriction())
    with pytest.raises(ValueError, match="connection 'p' has a restriction, but AvgPool2d has no weight to restrict"):
        make(pool, populations=(("a", (1, 2, 2)), ("b", (3,))))
    with pytest.raises(ValueError, match="the network has no populations"):
        make(populations=())
    for name in ("a", "input"):
        with pytest.raises(ValueError, match=f"population name '{name}' is used twice"):
            make(populations=(("a", (4,)), (name, (3,))))
    with pytest.raises(ValueError, match=re.escape("'readout' goes from 'b' with shape (4,), but that has (3,)")):
        make(readout=Readout("b", Dense((4,), (2,))))
    with pytest.raises(ValueError, match="'readout' goes from 'z', which is no population"):
        make(readout=Readout("z", Dense((4,), (2,))))


@given(case=cases())
def test_counts_follow_from_the_parameters(case):
    network = case.network
    assert network.n_parameters == sum(case.params[name].size for name in network.trainable)
    assert not {name for name in network.trainable if "running" in name or "singular" in name}
    assert network.feedback_size == len(case.feedback_sources())
    assert [(p.start, p.stop) for p in case.places()] == [
        (network.slice_of(p.name).start, network.slice_of(p.name).stop) for p in network.populations
    ]
    network.check_params(case.params)


def test_a_network_prints_as_a_table():
    shape = (4, 6, 6)
    network = ide_ref.Network(
        (1, 6, 6),
        (ide_ref.Population("a", shape), ide_ref.Population("b", (1200,))),
        (
            Connection(
                "l.in", "input", "a", Conv2d.over((1, 6, 6), 4, kernel=3), bias=True, batch_norm=True, dropout=0.25
            ),
            Connection("down", "a", "b", Dense(shape, (1200,)), bias=True),
            Connection("pool", "a", "a", AvgPool2d(shape, shape, 3, 1, 1)),
            Connection("up", "a", "a", ConvTranspose2d(shape, shape, 1, 1, 0), restriction=Restriction(0.5, "kernel")),
        ),
        Readout("b", Dense((1200,), (2,))),
        LIF(0.9),
    )
    assert str(network).splitlines() == [
        "population  shape  neurons",
        "input       1x6x6       36",
        "a           4x6x6      144",
        "b           1200     1,200",
        "",
        "connection  from   to        synapse          kernel                                    parameters  bias  "
        "batch norm  restriction         dropout",
        "l.in        input  a         Conv2d           3, stride 1, padding 1                            48  yes   "
        "yes         -                      0.25",
        "down        a      b         Dense            -                                            174,000  yes   "
        "-           -                         -",
        "pool        a      a         AvgPool2d        3, stride 1, padding 1                             0  -     "
        "-           -                         -",
        "up          a      a         ConvTranspose2d  1, stride 1, padding 0, output padding 0          17  -     "
        "-           kernel norm <= 0.5        -",
        "readout     b      2 logits  Dense            -                                              2,402  yes   "
        "-           -                         -",
        "",
        "1,380 neurons (input included), 176,467 parameters, LIF (leak 0.9, V_th 2)",
    ]
    assert repr(network).startswith("Network(input_shape=(1, 6, 6), populations=(Population(name='a', ")
    # A connection's name may have dots.
    assert {f"l.in.{part}" for part in ("weight", "bias", "bn_weight", "bn_bias")} <= set(network.trainable)
    params = network.init(np.random.default_rng(0))
    assert np.all(params["l.in.running_var"] == 1)
    network.check_params(params)
    for part, value in (("l.in.running_var", np.array([1.0, 1.0, -1.0, 1.0])), ("up.singular_vector", np.zeros(4))):
        with pytest.raises(ValueError, match=part):
            network.check_params({**params, part: value})


@given(case=cases())
def test_the_printed_parameters_of_the_connections_add_up(case):
    network = case.network
    populations, connections, (totals,) = (part.splitlines() for part in str(network).split("\n\n"))
    head, *rows = connections
    end = head.index("parameters") + len("parameters")
    counts = [int(row[:end].split()[-1].replace(",", "")) for row in rows]
    assert sum(counts) == network.n_parameters
    assert f"{network.n_neurons:,} neurons (input included), {network.n_parameters:,} parameters" in totals
    assert [row.split()[0] for row in rows] == [*(c.name for c in network.connections), "readout"]
    assert [row.split()[0] for row in populations[1:]] == ["input", *(p.name for p in network.populations)]
    for row, c in zip(rows, network.connections, strict=False):
        assert row.split()[1:4] == [c.source, c.target, type(c.synapse).__name__]
        bias, batch_norm, *restriction, dropout = row[end:].split()
        assert (bias == "yes", batch_norm == "yes", dropout != "-") == (c.bias, c.batch_norm, c.dropout > 0)
        assert (restriction != ["-"]) == (c.restriction is not None)


@given(case=cases())
def test_every_receiving_row_starts_with_norm_one(case):
    params = case.network.init(np.random.default_rng(1))
    for c in case.network.connections:
        if not c.synapse.weight_shape:
            continue
        weight = params[f"{c.name}.weight"]
        axis = 1 if isinstance(c.synapse, ConvTranspose2d) else 0
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-14)
        if c.restriction:
            assert params[f"{c.name}.alpha"].shape == ()
            assert abs(params[f"{c.name}.alpha"]) < c.restriction.c
        if c.batch_norm:
            np.testing.assert_array_equal(params[f"{c.name}.bn_weight"], 1)
            np.testing.assert_array_equal(params[f"{c.name}.running_var"], 1)
            assert not params[f"{c.name}.bn_bias"].any()
            assert not params[f"{c.name}.running_mean"].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_init_is_the_seed(dtype):
    one, two, other = (layer().init(np.random.default_rng(seed), dtype=dtype) for seed in (0, 0, 1))
    for name, value in one.items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, two[name])
    assert (one["input.weight"] != other["input.weight"]).all()


def test_weights_and_readouts_are_uniform_around_zero():
    network = build("50 (F50)", input_shape=(400,), n_classes=40, neuron=IF(), restriction=Restriction(0.5))
    params = network.init(np.random.default_rng(0))
    for part, bound in (("input.weight", np.sqrt(3 / 400)), ("readout.weight", 1 / np.sqrt(50))):
        np.testing.assert_allclose(
            np.quantile(params[part] / bound, [0.01, 0.25, 0.75, 0.99]), [-0.98, -0.5, 0.5, 0.98], atol=0.05
        )
    assert np.abs(params["readout.weight"]).max() <= 1 / np.sqrt(50)
    assert params["feedback.alpha"] == 0.45


def test_project_clips_alpha_alone():
    network = layer(restriction=Restriction(c=0.5))
    params = network.init(np.random.default_rng(0))
    for value, expected in ((0.7, 0.5), (-0.7, -0.5), (0.3, 0.3)):
        given_params = {**params, "feedback.alpha": np.asarray(value)}
        assert edited(network, Profile(clamp_alpha=True)).project(given_params) == given_params
        projected = network.project(given_params)
        assert projected["feedback.alpha"] == expected
        assert given_params["feedback.alpha"] == value
        assert all(projected[name] is params[name] for name in params if name != "feedback.alpha")
        network.check_params(projected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input.weight": np.zeros((3, 4))}, "parameter 'input.weight' has shape (3, 4); the network expects (4, 3)"),
        ({"feedback.alpha": np.zeros(1)}, "parameter 'feedback.alpha' has shape (1,); the network expects ()"),
        ({"extra": np.zeros(1)}, "missing none; unknown extra"),
        ({"readout.bias": np.array([0, np.nan])}, "parameter 'readout.bias' has values that are NaN or infinite"),
        ({"input.bn_weight": np.full(4, np.inf)}, "parameter 'input.bn_weight' has values that are NaN or infinite"),
        ({"input.bias": np.zeros(4, np.float32)}, "dtypes float32, float64; expected all float32 or all float64"),
        ({"input.bias": np.zeros(4, int)}, "dtypes float64, int64; expected all float32 or all float64"),
        ({"input.weight": [[1.0] * 3] * 4}, "parameter 'input.weight' is of type list; the network expects an array"),
        ({"feedback.alpha": 0.5}, "parameter 'feedback.alpha' is of type float; the network expects an array"),
        ({"input.bias": None}, "parameter 'input.bias' is of type NoneType; the network expects an array"),
        ({"input.bias": np.zeros(4, object)}, "parameter 'input.bias' has dtype object; expected float32 or float64"),
        ({"input.bias": np.zeros(4, complex)}, "parameter 'input.bias' has dtype complex128; expected float32 or"),
        ({"input.running_var": np.array([1, 1, -1e-9, 1])}, "parameter 'input.running_var' has negative values"),
        ({"feedback.singular_vector": np.zeros(4)}, "parameter 'feedback.singular_vector' is zero; expected a vector"),
    ],
)
def test_parameters_that_do_not_fit_are_named(change, message):
    params = layer().init(np.random.default_rng(0))
    for refuse in (layer().check_params, lambda changed: freeze(layer(), changed)):
        with pytest.raises(ValueError, match=re.escape(message)):
            refuse({**params, **change})


def test_variances_and_parts_of_a_start_may_be_zero():
    params = layer().init(np.random.default_rng(0))
    layer().check_params({**params, "input.running_var": np.zeros(4), "feedback.singular_vector": np.eye(4)[0]})


def test_missing_parameters_are_named():
    params = layer().init(np.random.default_rng(0))
    del params["input.bias"], params["readout.weight"]
    with pytest.raises(ValueError, match=r"missing input.bias, readout.weight; unknown none"):
        layer().check_params(params)


@given(n=st.integers(1, 100), data=st.data(), wide=st.booleans(), every=st.integers(1, 2))
def test_one_wild_number_is_found_wherever_it_is(n, data, wide, every):
    x = np.full(n, np.finfo(np.float32).max, np.float64 if wide else np.float32)
    x[data.draw(st.integers(0, n - 1)) :: 7] *= -1
    assert finite(x[::every])
    place = data.draw(st.integers(0, (n - 1) // every)) * every
    x[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    assert not finite(x[::every])


@given(case=cases())
def test_frozen_connections_are_the_affine_maps(case):
    """Restriction, batch norm and dropout folded, against the matrices of the oracle."""
    rng = np.random.default_rng(0)
    for c, m, (A, constant) in zip(case.network.connections, case.frozen.maps, case.affine(), strict=True):
        v, w = rng.normal(size=(len(case.x), A.shape[2])), rng.normal(size=(len(case.x), A.shape[1]))
        size = 1e-12 * (1 + np.abs(A).max() + np.abs(constant).max())
        if not (case.training and c.source == "input" and c.batch_norm):
            np.testing.assert_allclose(m.linear(v), apply(A, v), atol=size)
            np.testing.assert_allclose(m.adjoint(w), apply(A.swapaxes(1, 2), w), atol=size)
        arrived = np.ones((len(v), A.shape[1]))
        m.add_constant(arrived)
        np.testing.assert_allclose(arrived, 1 + constant + np.zeros_like(arrived), atol=size)
        if c.restriction:
            weight = m.weight
            matrix = weight.reshape(len(weight), -1)
            if c.restriction.norm == "operator":
                matrix = m.synapse.apply(m.taps, np.eye(m.synapse.n_in))
            alpha = abs(float(case.params[f"{c.name}.alpha"]))
            assert np.linalg.norm(matrix, 2) == pytest.approx(alpha, rel=1e-11)


@given(case=cases())
def test_operator_norms_are_true(case):
    for c, m, (A, _) in zip(case.network.connections, case.frozen.maps, case.affine(), strict=True):
        if c.source != "input":
            plain = np.linalg.norm(A, 2, axis=(1, 2)).max()
            assert m.operator_norm >= plain * (1 - 1e-12)
            if m.keep is None:
                assert m.operator_norm == pytest.approx(plain, rel=1e-10)


@pytest.mark.parametrize(("at_once", "asks"), [(2.0, [False]), (np.inf, [False, True])])
def test_a_bound_of_a_norm_is_computed_where_it_is_asked_for(at_once, asks, monkeypatch):
    """And once: a decomposition gives it with the value."""
    asked = []

    def norm(*given, bound):
        asked.append(bound)
        return Norm(1.0, 2.0 if bound else at_once)

    monkeypatch.setattr(maps_module, "operator_norm", norm)
    m = freeze(layer(), layer().init(np.random.default_rng(0))).maps[1]
    assert (m.operator_norm, asked) == (1.0, [False])
    assert (m.norm_bound, m.norm_bound, asked) == (Norm(1.0, 2.0), Norm(1.0, 2.0), asks)


def test_a_new_start_vector_finds_the_same_norm():
    network = layer()
    params = network.init(np.random.default_rng(0))
    first = freeze(network, params)
    again = freeze(network, {**params, **first.statistics})
    np.testing.assert_allclose(again.maps[1].weight, first.maps[1].weight, atol=1e-13)


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_a_network_frozen_on_one_batch_may_be_used_for_another(case, seed):
    """The drive is that of the input given, whatever was computed when the batch's statistics were taken."""
    own = case.frozen.mean_input(case.x)
    other = np.random.default_rng(seed).normal(size=own.shape)
    for x_mean in (own, own.copy(), other):
        cells = to_channels_last(x_mean, case.network.input_shape)
        expected = np.zeros((len(x_mean), case.network.state_size))
        for m in case.spec.net.maps:
            if m.source < 0:
                expected[:, case.places()[m.target]] += equations.output(m, cells)
        size = 1e-12 * (1 + np.abs(expected).max())
        np.testing.assert_allclose(case.frozen.drive(x_mean), expected, rtol=0, atol=size)


def test_a_batch_in_which_one_channel_is_lost_is_told_and_one_that_is_beyond_the_dtype_is_refused():
    network, rng = layer(), np.random.default_rng(0)
    params, x = network.init(rng), rng.normal(size=(9, 3))
    deviation = (x @ params["input.weight"][1]).std()
    for rounding in (0.008, 0.013):
        bias = np.array([0, -rounding / np.finfo(np.float64).eps * deviation, 0, 0])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            freeze(network, {**params, "input.bias": bias}, x, training=True)
        told = "connection 'input': the batch's mean is so far from 0 .* float64 moves normalised values by 0.01;"
        assert [bool(re.search(told, str(w.message))) for w in caught] == [True] * (rounding > 0.01)
    weight = params["input.weight"] * np.array([[1], [1], [1e200], [1]])
    with pytest.raises(
        ValueError, match="connection 'input': the batch's mean or variance is beyond float64; expected"
    ):
        freeze(network, {**params, "input.weight": weight}, x, training=True)


def test_masks_come_from_the_generator():
    network = layer(dropout=0.5)
    params, x = network.init(np.random.default_rng(0)), np.ones((6, 3))
    x = x * np.arange(6)[:, None]

    def masks(seed):
        frozen = freeze(network, params, x, training=True, rng=np.random.default_rng(seed))
        return np.stack([c.keep for c in frozen.maps])

    np.testing.assert_array_equal(masks(0), masks(0))
    assert (masks(0) != masks(1)).any()
    assert all(c.keep is None for c in freeze(network, params).maps)
    with pytest.raises(ValueError, match="rng is missing; connection 'input' has dropout and needs a generator"):
        freeze(network, params, x, training=True)


def test_freezing_needs_what_it_needs():
    network = layer()
    params = network.init(np.random.default_rng(0))
    with pytest.raises(ValueError, match="x is missing; freezing for training"):
        freeze(network, params, training=True)
    x = np.ones((2, 3))
    x[1, 2] = np.nan
    for bad in (x, np.where(np.isnan(x), np.inf, x)):
        with pytest.raises(ValueError, match="x has values that are NaN or infinite"):
            freeze(network, params, bad, training=True)
        with pytest.raises(ValueError, match="x has values that are NaN or infinite"):
            simulate(freeze(network, params), bad, 3)
    for shape in ((3,), (2, 4), (2, 5, 4), ()):
        with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}; expected (batch, *(3,))")):
            network.check_input(np.zeros(shape), np.float64)


def test_an_infinite_norm_is_refused():
    pair = constraints.SingularPair(np.inf, np.ones(1), np.ones(1), 0.0)
    with pytest.raises(ValueError, match=r"weight of connection 'in' has norm inf in float32; \(NORM\) needs one"):
        check_norm(GOOD, pair, np.dtype(np.float32))


@pytest.mark.parametrize("profile", [PAPER, Profile(one_power_step=True)])
@pytest.mark.parametrize(
    ("network", "factor", "norm"),
    [(layer(), 0.0, "0"), (picture(), 0.0, "0"), (layer(), 1e200, "nan"), (picture(), 1e200, "nan")],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_norm_that_is_not_positive_and_finite_is_refused(network, factor, norm, profile):
    params = network.init(np.random.default_rng(0))
    params["feedback.weight"] = factor * params["feedback.weight"]
    message = f"weight of connection 'feedback' has norm {norm} in float64; (NORM) needs one that is positive and fin"
    with pytest.raises(ValueError, match=re.escape(message)):
        freeze(edited(network, profile), params)


@pytest.mark.parametrize(
    ("dtype", "training", "tol"),
    [(np.float64, True, "1e-12"), (np.float32, True, "1e-03"), (np.float32, False, "1e-05")],
)
@pytest.mark.parametrize("network", [layer(), picture()])
def test_a_norm_that_was_not_found_to_its_tolerance_is_told(network, dtype, training, tol, monkeypatch):
    params = network.init(np.random.default_rng(0), dtype=dtype)
    search = partial(constraints.leading_singular_pair, max_restarts=1, n_vectors=2)
    monkeypatch.setattr(constraints, "leading_singular_pair", search)
    message = f"norm of connection 'feedback': .* residual of .*, tolerance {tol}"
    with pytest.warns(RuntimeWarning, match=message) as told:
        frozen = freeze(
            network, params, np.random.default_rng(0).normal(size=(3, *network.input_shape)), training=training
        )
    assert f"{frozen.pullbacks[1].singular.residual:.1e}" in str(told[0].message)
    assert told[0].filename == __file__


def test_a_structure_string_is_the_network():
    network = build("4C3s-6C3-8C3s-8C3-6C3 (F4C3u)", input_shape=(3, 8, 8), n_classes=4, neuron=IF(), dropout=0.2)
    assert [p.shape for p in network.populations] == [(4, 4, 4), (6, 4, 4), (8, 2, 2), (8, 2, 2), (6, 2, 2)]
    names = ["input", "hidden1", "hidden2", "hidden3", "hidden4", "feedback"]
    assert [c.name for c in network.connections] == names
    *hidden, feedback = network.connections
    assert all(isinstance(c.synapse, Conv2d) and c.bias and c.batch_norm and not c.restriction for c in hidden)
    assert isinstance(feedback.synapse, ConvTranspose2d)
    assert (feedback.bias, feedback.batch_norm) == (False, False)
    assert feedback.restriction
    assert (feedback.source, feedback.target) == ("a5", "a1")
    assert all(c.dropout == 0.2 for c in network.connections)
    assert network.readout == Readout("a5", Dense((6, 2, 2), (4,)))
    spaced = build(" 4C3s - 6C3-8C3s-8C3-6C3(F 4C3u )\n", input_shape=(3, 8, 8), n_classes=4, neuron=IF(), dropout=0.2)
    assert spaced == network


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("", "structure '', position 1: found the end; expected a layer like '400'"),
        ("  ", "position 3: found the end; expected a layer"),
        ("4 F4", "structure '4 F4', position 3: found 'F'; expected '-' and another layer, or the feedback connection"),
        ("4 (4)", "position 4: found '4'; expected 'F', which begins the feedback connection"),
        ("4 (F4", "position 6: found the end; expected ')', which ends the feedback connection"),
        ("4 (F4-4)", "position 6: found '-'; expected ')'"),
        ("4 (F)", "position 5: found ')'; expected a layer"),
        ("4) (F4)", "position 2: found ')'; expected '-'"),
        ("4 (F4) (F4)", "position 8: found '('; expected the end after the feedback connection (several feedback"),
        ("-4 (F4)", "position 1: found '-'; expected a layer"),
        ("4-x4 (F4)", "position 3: 'x4' is no layer"),
        ("4-0 (F4)", "position 3: '0' is no layer"),
        ("4-" + "9" * 5000, "'99999"),
        ("4-9999999999", "position 3: '9999999999' is no layer"),
        ("4" + "-4" * 100_000, "structure has 200001 characters; expected at most 10000"),
        ("4-４ (F4)", "position 3: '４' is no layer"),
        ("4--3 (F4)", "position 3: found '-'; expected a layer"),
        ("4-(F4)", "position 3: found '('; expected a layer"),
        ("4-3 (F5)", "position 7: connection 'feedback' arrives with shape (5,), but the first layer has (4,)"),
        ("4 (F4C3)", "position 5: '4C3' needs a picture to read, but what is sent has shape (4,)"),
        ("4C3 (F4C3)", "position 1: '4C3' needs a picture to read, but what is sent has shape (3,)"),
        ("4 (F4z)", "position 5: '4z' is no layer"),
    ],
)
def test_structures_that_do_not_parse_point_at_the_place(structure, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(structure, input_shape=(3,), n_classes=2, neuron=IF())


def test_pictures_that_do_not_fit_point_at_the_place():
    with pytest.raises(
        ValueError,
        match=re.escape("position 13: connection 'feedback' arrives with shape (4, 6, 6), but the first layer has (4,"),
    ):
        build("4C3s-4C3s (F4C3u)", input_shape=(1, 9, 9), n_classes=2, neuron=IF())
    with pytest.raises(ValueError, match="position 1: '2C0' does not fit: Conv2d has kernel 0"):
        build("2C0 (F2)", input_shape=(1, 2, 2), n_classes=2, neuron=IF())


@given(
    leak=st.sampled_from([0.3, 0.5, 0.9, 0.95, 1.0]),
    n_steps=st.integers(1, 12),
    n_batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_long_average_of_a_leaky_train_is_too_large_by_its_factor(leak, n_steps, n_batch, seed):
    """``long_average``: (1 − λ^{2T})/(1 − λ^{T+1}) for a spike train and LIF, 1 for IF and for static input."""
    network = build("4", input_shape=(3,), n_classes=2, neuron=IF() if leak == 1 else LIF(leak))
    x = np.random.default_rng(seed).normal(size=(n_batch, n_steps, 3))
    mean = equations.average(x, leak)
    factor = 1.0 if leak == 1 else (1 - leak ** (2 * n_steps)) / (1 - leak ** (n_steps + 1))
    theirs = edited(network, Profile(long_average=True))
    np.testing.assert_allclose(network.mean_input(x), mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(theirs.mean_input(x), factor * mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(theirs.mean_input(x[:, 0]), x[:, 0])


@given(
    structure=st.sampled_from([("4 (F4)", (3,)), ("3C3 (F3C3)", (2, 3, 3))]),
    scale=st.sampled_from([1e-2, 0.1, 1.0]),
    n_batch=st.integers(2, 9),
    n_steps=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_spikes_are_normalised_by_the_unbiased_variance_on_request(structure, scale, n_batch, n_steps, seed):
    """``unbiased_spike_statistics``: a rollout is that of running statistics whose root is that of v + 1e-8."""
    network = build(structure[0], input_shape=structure[1], n_classes=2, neuron=LIF())
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    params["input.weight"] = scale * params["input.weight"]
    params |= {name: rng.normal(0.5, 0.5, params[name].shape) for name in ("input.bn_weight", "input.bn_bias")}
    x = 1.0 * (rng.random((n_batch, n_steps, *network.input_shape)) < 0.5)
    frozen = freeze(edited(network, Profile(unbiased_spike_statistics=True)), params, x, training=True)
    connection = network.connections[0]
    z = connection.synapse.apply(
        connection.synapse.to_taps(params["input.weight"]), to_channels_last(network.mean_input(x), network.input_shape)
    )
    z = z.reshape(-1, connection.synapse.out_shape[0]) + params["input.bias"]
    variance = z.var(axis=0, ddof=1)
    assume(variance.min() > 2 * EPSILON)
    replaced = {"input.running_mean": z.mean(axis=0), "input.running_var": variance + 1e-8 - EPSILON}
    expected = simulate(freeze(network, params | replaced), x, n_steps)
    # A potential at its threshold may be rounded to either side.
    assume(expected.margin.min() > 1e-7)
    found = simulate(frozen, x, n_steps)
    np.testing.assert_array_equal(found.a, expected.a)
    np.testing.assert_allclose(found.u, expected.u, rtol=0, atol=1e-10 * (1 + np.abs(expected.u).max()))


def test_the_gradient_passes_through_the_batch_of_a_hidden_normalisation_on_request():
    """``batch_statistics_in_gradient``: the derivative of the normalisation by the batch's own moments."""
    network = make(GOOD, Connection("mid", "a", "b", Dense((4,), (3,)), batch_norm=True))
    rng = np.random.default_rng(0)
    params = network.init(rng)
    params |= {name: rng.normal(size=3) for name in ("mid.bn_weight", "mid.bn_bias", "mid.running_mean")}
    x, pre, delta = rng.normal(size=(6, 2)), rng.random((6, 4)), rng.normal(size=(6, 3))

    z, channel = pre @ params["mid.weight"].T, np.arange(3)
    running = params["mid.running_mean"], params["mid.running_var"]
    found = {}
    for from_batch in (False, True):
        profile = Profile(batch_statistics_in_gradient=from_batch)
        frozen = freeze(edited(network, profile), params, x, training=True, rng=rng)
        found[from_batch] = frozen.pullbacks[1].gradients(frozen.maps[1], delta, pre)[0]["mid.weight"]
        moments = equations.moments(z, channel) if from_batch else running
        norm = (params["mid.bn_weight"], params["mid.bn_bias"], *moments)
        d_z, *_ = equations.normalise_back(delta, z, norm, channel, from_batch)
        np.testing.assert_allclose(found[from_batch], equations.hebb(d_z, pre), atol=1e-12)
    assert not np.allclose(found[True], found[False], atol=1e-2)


def test_of_a_batch_s_own_statistics_other_inputs_are_normalised_with_them_too():
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(), dropout=0.5)
    network = replace(network, connections=(network.connections[0], replace(network.connections[1], dropout=0.0)))
    rng = np.random.default_rng(0)
    params, (x, other) = network.init(rng), rng.normal(size=(2, 5, 3))
    frozen = freeze(network, params, x, training=True, rng=rng)
    W, keep = params["input.weight"], frozen.maps[0].keep
    mean, variance = (x @ W.T).mean(axis=0), (x @ W.T).var(axis=0)
    for inputs in (x, x.copy(), other):
        expected = keep * (inputs @ W.T - mean) / np.sqrt(variance + EPSILON)
        np.testing.assert_allclose(frozen.drive(inputs), expected, atol=1e-13)
    # One mask where there is dropout, in training alone, whoever brings a generator.
    assert frozen.maps[1].keep is None
    assert all(m.keep is None for m in freeze(network, params, rng=rng).maps)
