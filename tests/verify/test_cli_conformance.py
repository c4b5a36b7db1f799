"""``ide-ref conformance`` by itself, on a parser of its own."""

import argparse
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ide_ref.cli import conformance as command
from ide_ref.verify.conformance import VERSION, PackError, load, reference

ONE = "mnist-64c5-lif-static-float32-bn"


def run(*argv):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), [common])
    args = parser.parse_args(["conformance", *map(str, argv)])
    return args.run(args)


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
    with pytest.raises(PackError, match="has no output of any case"):
        run("compare", pack, tmp_path)
