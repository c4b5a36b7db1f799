"""``ide-ref conformance``."""

import json

import numpy as np
from safetensors.numpy import save_file

from ide_ref.cli import main
from ide_ref.verify.conformance import VERSION, load, reference

ONE = "mnist-64c5-lif-static-float32-bn"


def run(*argv):
    return main(["conformance", *map(str, argv)])


def test_make_and_compare(tmp_path, capsys):
    pack, outputs = tmp_path / "pack", tmp_path / "outputs"
    outputs.mkdir()
    assert run("make", pack, "--case", ONE, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cases"], document["version"]) == (1, VERSION)
    (case,) = load(pack)
    out = {name: np.asarray(value, order="C") for name, value in reference(case).items()}
    save_file(out, outputs / f"{ONE}.safetensors")
    assert run("compare", pack, outputs) == 0
    assert "1 of 1 cases agree, 1 of them through every stage" in capsys.readouterr().out
    out["beta/a1"] = out["beta/a1"] * 2
    save_file(out, outputs / f"{ONE}.safetensors")
    assert run("compare", pack, outputs, "--json") == 1
    first = json.loads(capsys.readouterr().out)["first"]
    assert (first["case"], first["stage"], first["array"], first["rounding"]) == (ONE, "beta", "a1", False)
    assert run("compare", pack, outputs, "--stage", "rates") == 0
    assert run("compare", pack, tmp_path) == 2
    assert "has no output of any case" in capsys.readouterr().err
    assert run("compare", pack, tmp_path / "nowhere") == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
