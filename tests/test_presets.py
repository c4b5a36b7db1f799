import json
import re

import pytest

from ide_ref import presets
from ide_ref.datasets import DATASETS


@pytest.mark.parametrize("neuron", ["lif", "if"])
@pytest.mark.parametrize("name", presets.names())
def test_every_preset_survives_json_and_fits_its_data(name, neuron):
    preset = presets.load(name, neuron=neuron)
    assert presets.Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    assert preset.neuron.name == neuron
    info = DATASETS[preset.recipe.dataset]
    assert preset.n_classes == info.n_classes == preset.network.n_classes
    assert preset.input_shape in (info.input_shape, (info.input_shape[1] * info.input_shape[2],))
    assert len(preset.recipe.mean) == len(preset.recipe.std) == info.input_shape[0]
    assert (preset.recipe.input == "spikes") == (info.form == "events")


def test_time_steps_can_be_chosen():
    assert presets.load("digits", n_steps=9).recipe.n_steps == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fashion-mnist"}, "no preset is called 'fashion-mnist': did you mean 'fashion-mnist-400'? there are"),
        ({"name": "zzz"}, "no preset is called 'zzz': there are digits, fashion-mnist-400"),
        ({"name": "digits", "neuron": "hh"}, "neuron is 'hh', expected 'lif' or 'if'"),
        ({"name": "digits", "n_steps": 0}, "n_steps is 0; expected a whole number of at least 1"),
        ({"name": "digits", "norm": "two"}, "norm is 'two', expected 'operator' or 'kernel'"),
        ({"name": "digits", "profile": "ours"}, "profile is 'ours', expected 'paper' or 'authors'"),
    ],
)
def test_wrong_names(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        presets.load(**arguments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *((name, 0, f"{name} is 0; expected a whole") for name in ("epochs", "batch_size", "max_iter", "limit")),
        ("lr", 0.0, "lr is 0.0; expected a positive, finite number"),
        ("lr", float("nan"), "lr is nan; expected a positive, finite number"),
        ("tol", float("inf"), "tol is inf; expected a positive, finite number"),
        ("dtype", "float16", "dtype is 'float16'; expected one of float32, float64"),
        ("solver", "magic", "solver is 'magic'; expected one of fixed_point, "),
    ],
)
def test_wrong_recipes(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        presets.Recipe(**{"dataset": "digits", "n_steps": 1, "mean": (0.0,), "std": (1.0,), field: value})
