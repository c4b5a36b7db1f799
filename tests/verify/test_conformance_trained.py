"""The case of full size: from a checkpoint, with images by their index in a data set, which may be missing."""

import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from packs import seal
from safetensors.numpy import load_file, save_file

from ide_ref import datasets, presets
from ide_ref.cli import main
from ide_ref.training.loop import begin
from ide_ref.verify import conformance
from ide_ref.verify.conformance import PackError, run_port

NAME = "fashion-mnist-400-trained"


@pytest.fixture(scope="module")
def data():
    """Pictures of the size of Fashion-MNIST's, drawn."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 1, 28, 28)).astype(np.uint8), np.arange(60) % 10
    return datasets.Dataset.from_arrays(x[:30], y[:30], x[30:], y[30:], name="fashion-mnist")


@pytest.fixture
def found(monkeypatch, data):
    monkeypatch.setattr(datasets, "load", lambda name, **_: {"fashion-mnist": data}[name])


@pytest.fixture
def state():
    """A checkpoint whose normalisation is not neutral."""
    state = begin(presets.load("fashion-mnist-400"), 0)
    rng = np.random.default_rng(1)
    for name in ("input.bias", "input.bn_bias", "input.running_mean"):
        state.params[name] = rng.normal(0.1, 0.3, 400).astype(np.float32)
    for name in ("input.bn_weight", "input.running_var"):
        state.params[name] = rng.uniform(0.7, 1.5, 400).astype(np.float32)
    return state


@pytest.fixture
def folder(found, state, tmp_path):
    return conformance.make_trained(state, tmp_path / "trained", n_images=12).parent


def test_the_reference_passes_and_no_image_is_in_the_pack(folder, data, state):
    report = run_port(conformance.reference, directory=folder)
    assert report.passed, report.table()
    assert report.results[0].compared == ("weight", "rates", "logits")
    stored = load_file(folder / f"{NAME}.safetensors")
    assert not any(name.startswith(("input/x", "input/y", "margin")) for name in stored)
    assert stored["input/index"].tolist() == [*range(12)]
    assert {v.dtype.name for name, v in stored.items() if name.startswith("param/")} == {"float32"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6
    (case,) = conformance.load(folder)
    x, y = data.batch("test", np.arange(12))
    np.testing.assert_allclose(case.x, (x.reshape(12, 784) / 255 - 0.1307) / 0.3081, rtol=1e-12)
    about = case.config["images"]
    assert about["accuracy"] == np.mean(case.expected["logits"].argmax(axis=1) == y)


def test_normalisation_is_folded_at_the_running_statistics(folder, state):
    """The checkpoint's own network in evaluation gives the same, to single precision's weights."""
    from ide_ref.maps import freeze
    from ide_ref.simulation import simulate

    (case,) = conformance.load(folder)
    params = {name: value.astype(np.float64) for name, value in state.params.items()}
    frozen = freeze(state.preset.network, params)
    rates = simulate(frozen, case.x, case.config["n_steps"])
    same = np.isclose(rates.a, case.expected["rates/a1"], rtol=1e-9)
    assert same.mean() > 0.999
    np.testing.assert_allclose(
        frozen.read_out(rates)[same.all(axis=1)], case.expected["logits"][same.all(axis=1)], atol=1e-5
    )


def test_a_wrong_rate_is_told_and_more_stages_are_no_fault(folder):
    def port(case):
        return {**case.expected, "u/a1": np.zeros(3), "rates/a1": case.expected["rates/a1"] + wrong}

    wrong = 0.0
    assert run_port(port, directory=folder).passed
    wrong = 1e-3
    assert run_port(port, directory=folder).first.stage == "rates"


def test_where_the_data_set_is_missing_the_case_is_left_out_with_the_reason(folder, state, monkeypatch, tmp_path):
    def missing(name, **_):
        raise datasets.DataError("fashion-mnist is nowhere")

    monkeypatch.setattr(datasets, "load", missing)
    report = run_port(conformance.reference, directory=folder)
    assert report.results[0].declined == "its images are missing: fashion-mnist is nowhere"
    assert f"left    case {NAME}: its images are missing: fashion-mnist is nowhere" in report.table()
    report = conformance.run_command(["false"], conformance.load(folder))
    assert report.results[0].declined.startswith("its images are missing")
    with pytest.raises(ValueError, match="its images are missing: fashion-mnist is nowhere"):
        conformance.make_trained(state, tmp_path / "again")


def test_its_manifest_is_that_of_the_schema_and_bad_ones_are_named(folder):
    path = folder / "manifest.json"
    right = json.loads(path.read_text())
    validator = jsonschema.Draft202012Validator(json.loads((files(conformance) / "pack.schema.json").read_text()))
    assert not list(validator.iter_errors(right))
    row = right["cases"][0]
    for change, told in (
        ({"dataset": "/etc/passwd"}, "expected the part test of a dataset of mnist, fashion-mnist"),
        ({"dataset": "module:function"}, "expected the part test of a dataset of mnist, fashion-mnist"),
        ({"part": "train"}, "expected the part test"),
        ({"mean": [0.1, 0.2]}, "expected a list of one number each"),
        ({"std": None}, "expected a list of one number each"),
    ):
        wrong = {**right, "cases": [{**row, "images": {**row["images"], **change}}]}
        assert list(validator.iter_errors(wrong)), change
        path.write_text(json.dumps(wrong))
        seal(folder)
        with pytest.raises(PackError, match=told):
            conformance.load(folder)


def test_no_other_group_and_no_other_image_is_taken(folder):
    path = folder / "manifest.json"
    right = path.read_text()
    path.write_text(right.replace('"group": "optional"', '"group": "required"'))
    seal(folder)
    with pytest.raises(
        PackError, match="'images' in group required; a case of full size, with few stages, is optional"
    ):
        conformance.load(folder)
    path.write_text(right.replace("0.3081", "NaN"))
    seal(folder)
    with pytest.raises(PackError, match="expected a list of one number each"):
        conformance.load(folder)
    path.write_text(right)
    arrays = load_file(folder / f"{NAME}.safetensors")
    for index in ([-1, 2], [0, 30], [0.0], [[1]], []):
        save_file({**arrays, "input/index": np.array(index)}, folder / f"{NAME}.safetensors")
        seal(folder)
        with pytest.raises(PackError, match="'input/index' names no images of fashion-mnist; expected some of 0 to 29"):
            conformance.load(folder)


def test_other_networks_are_refused(found, state, tmp_path):
    with pytest.raises(ValueError, match="mnist-64c5 is no network of one flat population with static images"):
        conformance.make_trained(begin(presets.load("mnist-64c5"), 0), tmp_path)
    # Its pictures are in no pack: it could not be read again.
    with pytest.raises(ValueError, match=r"digits is no network of .* with static images of mnist or fashion-mnist"):
        conformance.make_trained(begin(presets.load("digits"), 0), tmp_path)
    graph = presets.Preset.of(state.preset.network, state.preset.recipe)
    with pytest.raises(ValueError, match=r"graph is no network of .*, built from a structure"):
        conformance.make_trained(begin(graph, 0), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_the_command(found, state, tmp_path, monkeypatch, capsys):
    from ide_ref.training import checkpoint

    checkpoint.save(tmp_path / "checkpoint.safetensors", state)
    words = ["conformance", "make-trained", str(tmp_path), str(tmp_path / "pack"), "--images", "3"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("1 case, 3.2 MB")
