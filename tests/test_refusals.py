"""What no function takes: each public one, each argument, with values that make no sense.

A refusal is a ValueError that names the argument and says what was expected; nothing else may come out, no
traceback from inside and no result.
"""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny

import ide_ref
from ide_ref import IF, LIF, SGD, Dense, Neuron, Restriction, build, datasets, freeze, presets, simulate
from ide_ref.authors import Profile, edited
from ide_ref.continuous import PiecewiseInput, Pulses, simulate_continuous
from ide_ref.equilibrium import fixed_point_map
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d, matmul
from ide_ref.theory import block_matrix, conditions, continuous_error_bound, error_bound, fixed_point_residual, split
from ide_ref.training import checkpoint, evaluation, loop
from ide_ref.training.schedule import learning_rate

RNG = np.random.default_rng
NETWORK = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF())
PARAMS = NETWORK.init(RNG(0))
X = RNG(1).normal(size=(5, 3))
FROZEN = freeze(NETWORK, PARAMS)
RATES = simulate(FROZEN, X, 4)
D_LOGITS = np.full((5, 2), 0.1)
THERE = ide_ref.linearise(FROZEN, RATES.a, FROZEN.drive(X))
TINY, DATA = tiny.preset(epochs=1), tiny.data()
STATE = loop.begin(TINY, 0)
VELOCITY = SGD().start(PARAMS, NETWORK.trainable)
IMAGES = np.zeros((3, 1, 8, 8), np.uint8)
EVENTS = datasets.Events(np.zeros(2, np.uint8), np.zeros(2, np.uint8), np.zeros(2, np.uint8), np.arange(2))

RECORDED = simulate(FROZEN, X, 4, record=True)
RUN = simulate_continuous(FROZEN, X[0], np.arange(1.0, 4.0))
OTHER = build("5 (F5)", input_shape=(3,), n_classes=2, neuron=IF())
ELSEWHERE = freeze(OTHER, OTHER.init(RNG(0)))
RECORDED_ELSEWHERE = simulate(ELSEWHERE, X, 4, record=True)

NO_NUMBER = (None, "1", [1.0], np.ones(2), 1j, np.nan, np.inf, True, object())
NO_POSITIVE = (*NO_NUMBER, 0, -1.0)
NO_COUNT = (*NO_POSITIVE, 2.5, 3.0, np.float64(2))
NO_WHOLE = (*NO_NUMBER, -1, 2.5)
NO_NAME = (None, 1, "", "no such", ["iterate"], np.zeros(2), b"iterate")
NO_SHAPE = (None, 3, (), (0,), (-3,), (2.5,), ("a",), (3, 0), "3", np.array([3]))
NO_OBJECT = (None, 1, "x", [], {}, object(), NETWORK.neuron.sigma)
NO_ARRAY = (None, "x", 1.0, object(), {}, np.zeros((5, 3), object), np.zeros((5, 3), complex), np.array(["a"]))
NO_STATE = (*NO_ARRAY, np.zeros((5, 3)), np.zeros(4), np.zeros((5, 4, 1)), np.full((5, 4), np.nan))
NO_INPUT = (*NO_ARRAY, np.zeros((0, 3)), np.zeros((5, 0, 3)), np.zeros((5, 2)), np.full((5, 3), np.inf))
NO_PATH = (None, 1, b"x", [], object())


def network(**changes):
    return replace(NETWORK, **changes)


def connection(**changes):
    return network(connections=(replace(NETWORK.connections[0], **changes), NETWORK.connections[1]))


def population(**changes):
    return network(populations=(replace(NETWORK.populations[0], **changes),))


def readout(**changes):
    return network(readout=replace(NETWORK.readout, **changes))


def recipe(**changes):
    return replace(TINY.recipe, **changes)


def preset(**changes):
    return replace(TINY, **changes).network


def sensor(**changes):
    return datasets.Sensor(**changes)


# A call that works, and for each argument what it refuses.
CALLS = [
    (Neuron, {"leak": 0.9, "v_th": 2.0}, {"leak": (*NO_POSITIVE, 1.5), "v_th": NO_POSITIVE}),
    (LIF, {"leak": 0.9, "v_th": 2.0}, {"leak": (*NO_POSITIVE, 1.0, 1.5), "v_th": NO_POSITIVE}),
    (Restriction, {"c": 1.0}, {"c": NO_POSITIVE, "norm": NO_NAME}),
    (Dense, {"in_shape": (3,), "out_shape": (4,)}, {"in_shape": NO_SHAPE, "out_shape": NO_SHAPE}),
    (
        Conv2d.over,
        {"in_shape": (2, 5, 5), "channels": 3, "kernel": 3},
        {
            "in_shape": (*NO_SHAPE, (3,)),
            "kernel": NO_COUNT,
            "stride": NO_COUNT,
            "padding": (-1, 0.5, "1", [], np.zeros(2)),
        },
    ),
    (
        ConvTranspose2d.over,
        {"in_shape": (2, 5, 5), "channels": 3, "kernel": 3},
        {"in_shape": (*NO_SHAPE, (3,)), "kernel": NO_COUNT, "stride": NO_COUNT, "output_padding": (*NO_WHOLE, 2)},
    ),
    (
        AvgPool2d.over,
        {"in_shape": (2, 4, 4), "kernel": 2},
        {"in_shape": (*NO_SHAPE, (3,)), "kernel": NO_COUNT, "padding": NO_WHOLE},
    ),
    (
        simulate_continuous,
        {"frozen": FROZEN, "x": X[0], "times": np.arange(1.0, 4.0), "tau": 5.0, "delay": 0.1, "max_events": 100},
        {
            "frozen": NO_OBJECT,
            "x": (
                *NO_ARRAY,
                X,
                X[0] * np.nan,
                PiecewiseInput("a", X),
                PiecewiseInput(np.zeros(1), "a"),
                Pulses("a", np.zeros(1, int)),
            ),
            "times": (
                *NO_ARRAY[:6],
                NO_ARRAY[7],
                [],
                np.zeros(2),
                np.array([2.0, 1.0]),
                np.array([1.0, np.nan]),
                [[1.0]],
            ),
            "tau": (*NO_NUMBER[:6], *NO_NUMBER[7:], 0, -1.0, -np.inf),
            "delay": (*NO_NUMBER, -1.0),
            "max_events": NO_COUNT,
            "resume": NO_OBJECT[1:],
        },
    ),
    (conditions, {"frozen": FROZEN}, {"frozen": NO_OBJECT}),
    (block_matrix, {"frozen": FROZEN}, {"frozen": NO_OBJECT, "part": NO_NAME}),
    (
        split,
        {"frozen": FROZEN, "x": X, "rates": RECORDED},
        {"frozen": NO_OBJECT, "x": (*NO_INPUT, X[:2]), "rates": (*NO_OBJECT, RATES, RECORDED_ELSEWHERE)},
    ),
    (
        error_bound,
        {"frozen": FROZEN, "x": X, "rates": RECORDED},
        {
            "frozen": NO_OBJECT,
            "x": (*NO_INPUT, X[:2]),
            "rates": (*NO_OBJECT, RATES, RECORDED_ELSEWHERE),
            "x_star": (*NO_ARRAY[1:], X[:2], X[0], X * np.inf),
            "known": NO_OBJECT[1:],
        },
    ),
    (
        fixed_point_residual,
        {"frozen": FROZEN, "x": X, "rates": RECORDED, "times": [1, 4]},
        {
            "frozen": NO_OBJECT,
            "x": (*NO_INPUT, X[:2]),
            "rates": (*NO_OBJECT, RATES, RECORDED_ELSEWHERE),
            "times": (*NO_ARRAY, [], [0], [5], [1.5], [2, 1], [1, 1], [[1]], [np.nan]),
        },
    ),
    (
        continuous_error_bound,
        {"frozen": FROZEN, "x_star": X[0], "run": RUN},
        {
            "frozen": NO_OBJECT,
            "x_star": (*NO_ARRAY, X, X[0] * np.nan),
            "run": (*NO_OBJECT, RECORDED, simulate_continuous(ELSEWHERE, X[0], np.ones(1))),
        },
    ),
    (
        continuous_error_bound(FROZEN, X[0], RUN).floor,
        {"tau": np.inf},
        {"tau": (*NO_NUMBER[:6], *NO_NUMBER[7:], 0, -1.0)},
    ),
    (matmul, {"x": X, "w": np.ones((3, 2))}, {"x": (X[0], X[:, :2], np.ones((5, 4))), "w": (X, X[0])}),
    (
        network,
        {},
        {
            "input_shape": NO_SHAPE,
            "populations": (None, 1, "x", [], object(), (None,), (1,)),
            "connections": (None, 1, "x", [], object(), (None,), (1,)),
            "readout": NO_OBJECT,
            "neuron": NO_OBJECT,
        },
    ),
    (population, {}, {"name": (None, 1, [], np.zeros(2)), "shape": NO_SHAPE}),
    (
        connection,
        {},
        {
            "name": (None, 1, [], np.zeros(2)),
            "source": (None, 1, [], np.zeros(2)),
            "target": (None, 1, [], np.zeros(2)),
            "synapse": NO_OBJECT,
            "restriction": NO_OBJECT[1:],
            "dropout": (*NO_NUMBER, -0.1, 1),
        },
    ),
    (readout, {}, {"source": (None, 1, [], np.zeros(2)), "synapse": (*NO_OBJECT, Conv2d.over((1, 2, 2), 1, kernel=1))}),
    (
        build,
        {"structure": "4 (F4)", "input_shape": (3,), "n_classes": 2, "neuron": IF()},
        {
            "structure": (None, 4, b"4", ["4"]),
            "input_shape": NO_SHAPE,
            "n_classes": NO_COUNT,
            "neuron": NO_OBJECT,
            "dropout": (*NO_NUMBER, -0.1, 1),
            "restriction": NO_OBJECT[1:],
        },
    ),
    (NETWORK.init, {"rng": RNG(0)}, {"rng": NO_OBJECT, "dtype": ("f2", int, "no", 1, object)}),
    (
        freeze,
        {"network": NETWORK, "params": PARAMS, "x": X, "training": True, "rng": RNG(0)},
        {"network": NO_OBJECT, "params": (None, 1, "x", [], object()), "x": NO_INPUT, "rng": NO_OBJECT[1:]},
    ),
    (edited, {"network": NETWORK, "profile": Profile()}, {"network": NO_OBJECT, "profile": NO_OBJECT}),
    (simulate, {"frozen": FROZEN, "x": X, "n_steps": 3}, {"frozen": NO_OBJECT, "x": NO_INPUT, "n_steps": NO_COUNT}),
    (ide_ref.read_out, {"frozen": FROZEN, "state": RATES}, {"frozen": NO_OBJECT, "state": NO_OBJECT}),
    (RATES.of, {"population": "a1"}, {"population": (None, 0, [], "input", "a2")}),
    (
        ide_ref.find_equilibrium,
        {"frozen": FROZEN, "x": X},
        {
            "frozen": NO_OBJECT,
            "x": NO_INPUT,
            "method": NO_NAME,
            "sigma": NO_NAME,
            "tol": NO_POSITIVE[1:],
            "max_iter": NO_COUNT,
            "start": (*NO_STATE[1:], np.zeros((4, 4))),
        },
    ),
    (ide_ref.contraction, {"frozen": FROZEN}, {"frozen": NO_OBJECT}),
    (
        ide_ref.linearise,
        {"frozen": FROZEN, "a": RATES.a, "drive": RATES.a},
        {"frozen": NO_OBJECT, "a": (*NO_STATE, RATES.a[:4]), "drive": (*NO_STATE, RATES.a[:4]), "mask_rule": NO_NAME},
    ),
    (
        fixed_point_map,
        {"frozen": FROZEN, "x": X, "z": RATES.a},
        {"frozen": NO_OBJECT, "x": NO_INPUT, "z": (*NO_STATE[:-1], RATES.a[:4])},
    ),
    (
        ide_ref.backward,
        {"frozen": FROZEN, "state": RATES, "d_logits": D_LOGITS},
        {
            "frozen": NO_OBJECT,
            "state": NO_OBJECT,
            "d_logits": (*NO_ARRAY, D_LOGITS[:4], np.full((5, 2), np.nan), np.full((5, 2), np.inf)),
            "solver": NO_NAME,
            "tol": NO_POSITIVE[1:],
            "max_iter": NO_COUNT,
            "mask_rule": NO_NAME,
        },
    ),
    (ide_ref.Surrogate, {"name": "triangle", "width": 1.0}, {"name": NO_NAME, "width": NO_POSITIVE}),
    (
        ide_ref.backward_through_time,
        {"frozen": FROZEN, "x": X, "rates": RECORDED, "d_logits": D_LOGITS},
        {
            "frozen": NO_OBJECT,
            "x": (*NO_INPUT, X[:4]),
            "rates": (*NO_OBJECT, RATES),
            "d_logits": (*NO_ARRAY, D_LOGITS[:4], np.full((5, 2), np.nan)),
            "surrogate": NO_OBJECT[1:],
        },
    ),
    (
        ide_ref.solve_beta,
        {"jacobian": THERE, "g": RATES.a},
        {"jacobian": NO_OBJECT, "g": (*NO_STATE, RATES.a[:4]), "at": NO_OBJECT[1:], "solver": NO_NAME},
    ),
    (
        ide_ref.solve,
        {"method": "direct", "matvec": lambda v: 0.5 * v, "b": np.ones((2, 3)), "tol": 1e-3},
        {
            "method": NO_NAME,
            "matvec": NO_OBJECT[:-1],
            "b": (*NO_ARRAY, np.ones(3), np.ones((2, 3), int)),
            "tol": NO_POSITIVE[1:],
            "max_iter": NO_COUNT,
            "x0": (*NO_ARRAY[1:], np.ones(3), np.ones((3, 3))),
        },
    ),
    (
        ide_ref.cross_entropy,
        {"logits": np.zeros((2, 3)), "y": [0, 2]},
        {"logits": (*NO_ARRAY, np.zeros((0, 3)), np.zeros((2, 0))), "y": (*NO_ARRAY, [0, 3], [-1, 0], [0], [0.0, 1.0])},
    ),
    (SGD, {}, {"momentum": (*NO_NUMBER, -0.1, 1.0), "weight_decay": (*NO_NUMBER, -0.1), "nesterov": (None, 1, "x")}),
    (
        SGD().start,
        {"params": PARAMS, "trainable": NETWORK.trainable},
        {"params": (None, 1, "x", []), "trainable": (("nothing",), (1,), ([],))},
    ),
    (
        SGD().step,
        {"params": PARAMS, "velocity": VELOCITY, "gradients": VELOCITY, "rate": 0.1},
        {
            "params": (None, 1, "x", [], {}, {**PARAMS, "readout.bias": np.zeros(3)}),
            "velocity": (None, 1, "x", []),
            "gradients": (None, 1, "x", [], {}, {**VELOCITY, "readout.bias": np.zeros(3)}),
            "rate": (*NO_NUMBER, {}, {**dict.fromkeys(VELOCITY, 0.1), "readout.bias": None}),
        },
    ),
    (
        learning_rate,
        {"base": 0.1, "epoch": 0, "step": 0},
        {"base": NO_NUMBER, "epoch": NO_WHOLE, "step": NO_WHOLE, "gamma": NO_NUMBER, "warmup_steps": NO_WHOLE},
    ),
    (
        learning_rate,
        {"base": 0.1, "epoch": 0, "step": 0, "schedule": "cosine", "total_steps": 9},
        {"schedule": NO_NAME, "total_steps": (*NO_COUNT, 0)},
    ),
    (
        recipe,
        {},
        {
            **dict.fromkeys(("n_steps", "epochs", "batch_size", "max_iter"), NO_COUNT),
            "limit": NO_COUNT[1:],
            **dict.fromkeys(("warmup_steps", "crop"), NO_WHOLE),
            **dict.fromkeys(("lr", "tol", "gamma", "readout_rate"), NO_POSITIVE),
            "clip_norm": NO_POSITIVE[1:],
            "momentum": (*NO_NUMBER, -0.1, 1.0),
            "weight_decay": (*NO_NUMBER, -0.1),
            "milestones": (None, 3, "3", (0,), (2.5,), ("3",), [3]),
            **dict.fromkeys(("mean", "std"), (0.3, "x", (), ("x",), (np.nan,), [0.3])),
            **dict.fromkeys(("dtype", "solver", "input", "schedule"), NO_NAME),
            "label_smoothing": (*NO_NUMBER, -0.1, 1.0),
            "nesterov": (None, 1, "x"),
            "dataset": (None, 1, []),
        },
    ),
    (
        preset,
        {},
        {"name": (None, 1, []), "recipe": NO_OBJECT, "profile": NO_OBJECT, "graph": NO_OBJECT[1:], "neuron": NO_OBJECT},
    ),
    (
        presets.load,
        {"name": "digits"},
        {"name": (None, 1, []), "neuron": NO_NAME, "n_steps": NO_COUNT[1:], "norm": NO_NAME, "profile": NO_NAME},
    ),
    (loop.begin, {"preset": TINY, "seed": 0}, {"preset": NO_OBJECT, "seed": NO_WHOLE}),
    (
        loop.train,
        {"preset": TINY, "data": DATA, "out": "{tmp}"},
        {"preset": NO_OBJECT, "data": NO_OBJECT, "out": NO_PATH, "seed": NO_WHOLE},
    ),
    (
        evaluation.evaluate,
        {"preset": TINY, "params": STATE.params, "data": DATA},
        {
            "preset": NO_OBJECT,
            "params": (None, 1, "x", []),
            "data": NO_OBJECT,
            "split": NO_NAME,
            "batch_size": NO_COUNT[1:],
        },
    ),
    (
        evaluation.load_batch,
        {"preset": TINY, "data": DATA, "split": "train", "indices": [0, 1]},
        {
            "preset": NO_OBJECT,
            "data": NO_OBJECT,
            "split": NO_NAME,
            "indices": (None, 1, "x", [0.0], [-1], [50], [[0]]),
            "rng": NO_OBJECT[1:],
        },
    ),
    (
        evaluation.equilibrium_distance,
        {"preset": TINY, "params": STATE.params, "x": np.zeros((2, 64))},
        {"preset": NO_OBJECT, "params": (None, 1, "x", []), "x": NO_INPUT},
    ),
    (checkpoint.save, {"path": "{tmp}", "checkpoint": STATE}, {"path": NO_PATH, "checkpoint": NO_OBJECT}),
    (checkpoint.load, {"path": "{saved}"}, {"path": NO_PATH}),
    (datasets.load, {"name": "digits"}, {"name": (*NO_NAME, {}), "limit": NO_COUNT[1:], "n_frames": (1,)}),
    (datasets.status, {}, {"data_dir": NO_PATH[1:]}),
    (
        datasets.normalise,
        {"x": IMAGES, "mean": 0.1, "std": 0.3},
        {
            "x": (*NO_ARRAY, IMAGES[0]),
            "mean": (None, "x", [], np.nan, [0.1, 0.2], 1j),
            "std": (None, "x", [], np.nan, [0.1, 0.2], 0, -1.0),
            "scale": NO_POSITIVE,
            "dtype": ("f2", int, "no", 1),
        },
    ),
    (
        datasets.random_crop,
        {"x": IMAGES, "rng": RNG(0)},
        {"x": (*NO_ARRAY, IMAGES[0]), "rng": NO_OBJECT, "padding": NO_WHOLE},
    ),
    (
        datasets.random_flip,
        {"x": IMAGES, "rng": RNG(0)},
        {"x": (*NO_ARRAY, IMAGES[0]), "rng": NO_OBJECT, "probability": (*NO_NUMBER, -0.1, 1.1)},
    ),
    (
        datasets.check_images,
        {"x": IMAGES, "y": [0, 1, 2], "n_classes": 3, "input_shape": (1, 8, 8)},
        {"x": NO_ARRAY, "y": NO_ARRAY, "n_classes": NO_COUNT, "input_shape": NO_SHAPE},
    ),
    (
        datasets.bin_events,
        {"events": EVENTS, "n_frames": 3},
        {
            "events": (
                *NO_OBJECT,
                replace(EVENTS, x=EVENTS.x + 34),
                replace(EVENTS, t=EVENTS.t[::-1]),
                replace(EVENTS, t=EVENTS.t - 1),
                replace(EVENTS, y=EVENTS.y[:1]),
            ),
            "n_frames": NO_COUNT,
            "window": NO_COUNT[1:],
        },
    ),
    (datasets.write_events, {"path": "{tmp}", "events": EVENTS}, {"path": NO_PATH, "events": NO_OBJECT}),
    (datasets.EventFrames, {"paths": (), "n_frames": 3}, {"paths": (None, 1, "x"), "n_frames": NO_COUNT}),
    (
        datasets.record,
        {"images": np.zeros((1, 28, 28), np.uint8)},
        {"images": (*NO_ARRAY, IMAGES), "seed": NO_WHOLE, "sensor": NO_OBJECT[1:]},
    ),
    (sensor, {}, {f.name: (*NO_NUMBER, -1) for f in fields(datasets.Sensor)}),
]
MISSING = Path("no such file")
for _reader in (datasets.read_idx, datasets.idx_shape, datasets.read_events, datasets.read_cifar10):
    CALLS.append((_reader, {"path": MISSING}, {"path": NO_PATH}))
CALLS.append((datasets.find_recordings, {"folder": MISSING, "split": "train"}, {"folder": NO_PATH, "split": NO_NAME}))

NAMES = {
    # A message about a part of a network names the part, and that about files or windows what they are.
    "populations": "population",
    "connections": "connection",
    "mask_rule": "mask rule",
    "method": "solver",
    "indices": "indices",
}


def described(call):
    return getattr(call, "__qualname__", str(call))


def prepared(good, tmp_path):
    """Arguments with a checkpoint to load and a place to write to."""
    checkpoint.save(tmp_path / "saved", STATE)
    places = {"{tmp}": tmp_path / "new", "{saved}": tmp_path / "saved"}
    return {key: places.get(value, value) if isinstance(value, str) else value for key, value in good.items()}


@pytest.mark.parametrize(
    ("function", "good", "name", "bad"),
    [
        pytest.param(function, good, name, bad, id=f"{described(function)}-{name}")
        for function, good, wrong in CALLS
        for name, bad in wrong.items()
    ],
)
def test_every_argument_is_checked_by_name(function, good, name, bad, tmp_path):
    good = prepared(good, tmp_path)
    before = sorted(tmp_path.iterdir())
    for value in bad:
        with pytest.raises(
            ValueError, match=r"expected|is unknown|no population|is missing|no such|leave it out"
        ) as refusal:
            function(**{**good, name: value})
        message = str(refusal.value)
        known = {name, NAMES.get(name, name), name.rstrip("s"), name.replace("_", " ")}
        assert any(word in message for word in known), (value, message)
        assert "ambiguous" not in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("function", "good"),
    [pytest.param(f, good, id=described(f)) for f, good, _ in CALLS if not any(v is MISSING for v in good.values())],
)
def test_the_calls_do_work_otherwise(function, good, tmp_path):
    function(**prepared(good, tmp_path))


def test_whole_numbers_may_be_numpys():
    for kind in (np.int64, np.int32, np.uint8):
        assert simulate(FROZEN, X, kind(3)).n_steps == 3
        assert ide_ref.find_equilibrium(FROZEN, X, max_iter=kind(200)).converged
        built = build("4", input_shape=[kind(3)], n_classes=kind(2), neuron=IF())  # lists of sizes make a tuple
        assert (built.input_shape, built.n_classes) == ((3,), 2)


def test_one_sample_has_no_unbiased_variance():
    profile = Profile(unbiased_spike_statistics=True)
    x = np.ones((1, 2, 3))
    with pytest.raises(ValueError, match="x has 1 sample; the profile's unbiased variance takes 2 values per channel"):
        freeze(edited(NETWORK, profile), PARAMS, x, training=True)
    assert simulate(freeze(NETWORK, PARAMS, x, training=True), x, 2).n_steps == 2
