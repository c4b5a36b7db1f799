import json
import re
from dataclasses import replace

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


@pytest.mark.parametrize("neuron", ["lif", "if"])
@pytest.mark.parametrize("name", presets._FAST)
def test_a_fast_recipe_trains_the_same_network(name, neuron):
    paper, fast = (presets.load(name, neuron=neuron, recipe=recipe) for recipe in ("paper", "fast"))
    same = {"recipe": paper.recipe, "dropout": paper.dropout}
    assert replace(fast, **same) == paper
    assert (fast.recipe.n_steps, fast.recipe.method) == (paper.recipe.n_steps, paper.recipe.method)
    assert fast.recipe.epochs < paper.recipe.epochs
    assert fast.recipe.schedule == "one-cycle"
    assert presets.Preset.from_dict(json.loads(json.dumps(fast.to_dict()))) == fast


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fashion-mnist"}, "no preset is called 'fashion-mnist': did you mean 'fashion-mnist-400'? there are"),
        ({"name": "zzz"}, "no preset is called 'zzz': there are digits, fashion-mnist-400"),
        (
            {"name": "digits", "recipe": "fast"},
            "digits has no fast recipe; expected recipe paper, or one of fashion-mnist-400, mnist-64c5",
        ),
        ({"name": "digits", "recipe": "slow"}, "recipe is 'slow'; expected one of paper, fast"),
        ({"name": "digits", "neuron": "hh"}, "neuron is 'hh'; expected one of lif, if"),
    ],
)
def test_wrong_names(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        presets.load(**arguments)
