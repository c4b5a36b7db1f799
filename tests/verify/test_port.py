"""The worked port to PyTorch passes every case; ten mutations of its source are located where they were made."""

import importlib.util
import sys
from pathlib import Path

import pytest

from ide_ref.verify import conformance, run_port

torch = pytest.importorskip("torch")

SOURCE = Path(__file__).parents[2] / "notebooks" / "port_torch.py"
CASES = (
    "fashion-mnist-400-lif-static-float64-bn",
    "mnist-64c5-lif-static-float64-bn",
    "nmnist-64c5-lif-spikes-float64-plain",
    "alexnet-f-lif-static-float64-bn",
    "fashion-mnist-400-lif-static-float64-bn-dropout",
)

# (what is replaced, by what, the stage where it must show)
MUTATIONS = {
    "norm of the restriction left out": (
        'self.param(c, "alpha") / self.singular(c)[0] * weight',
        'self.param(c, "alpha") * weight',
        "weight",
    ),
    "plain mean of the input": ("self.leak ** torch.arange", "1.0 ** torch.arange", "x_mean"),
    "variance unbiased": ("unbiased=False", "unbiased=True", "drive"),
    "leak forgotten": ("v = self.leak * u[k]", "v = u[k]", "spikes"),
    "forward spikes one step late": ('rank[c["source"]] < rank[k] else', 'c["source"] == "input" else', "spikes"),
    "reset to zero": ("u[k] = v - self.v_th * s[k]", "u[k] = v * (1 - s[k])", "spikes"),
    "sum over the batch": (" / len(self.x)\n", "\n", "d_logits"),
    "mask on one end": ("(p >= 0) & (p <= self.v_th)", "(p >= 0)", "mask"),
    "kernel not flipped": (
        'conv2d_input((len(v), *self.shape[c["source"]]), weight,',
        'conv2d_input((len(v), *self.shape[c["source"]]), weight.flip(2, 3),',
        "beta",
    ),
    "V_th missing in (BETA)": (
        'm[c["target"]] * beta[c["target"]] / self.v_th)\n                moved',
        'm[c["target"]] * beta[c["target"]])\n                moved',
        "beta",
    ),
    "projection term missing": ("(d_weight - along * d_norm)", "d_weight", "grad"),
    "dropout missing on the way back": ('grads, delta = {}, delta * self.keep.get(c["name"], 1)', "grads = {}", "grad"),
    "weight decay forgotten": (' + sgd["weight_decay"] * old[n]', "", "new"),
}


def port_of(source, name="port_under_test"):
    spec = importlib.util.spec_from_loader(name, loader=None)
    module = importlib.util.module_from_spec(spec)
    exec(compile(source, name, "exec"), module.__dict__)
    return module.Port


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pack")
    conformance.make(directory)
    return directory


def test_port_is_short():
    assert len(SOURCE.read_text().splitlines()) < 200


def test_port_passes_all_cases(pack):
    Port = port_of(SOURCE.read_text())
    report = run_port(lambda case: Port(case).run(), directory=pack)
    assert report.passed, report.table()
    assert len(report.results) == 82
    assert all(result.complete for result in report.results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_port_passes_all_cases_on_cuda(pack):
    Port = port_of(SOURCE.read_text())

    def port(case):
        return {name: value.cpu() for name, value in Port(case, "cuda").run().items()}

    report = run_port(port, directory=pack)
    assert report.passed, report.table()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_located(mutation, pack):
    before, after, stage = MUTATIONS[mutation]
    source = SOURCE.read_text()
    assert before in source
    Port = port_of(source.replace(before, after))
    report = run_port(lambda case: Port(case).run(), directory=pack, names=CASES)
    assert not report.passed
    assert report.first.stage == stage, report.table()
    assert report.first.rounding is False


def test_arrays_of_torch_are_compared_as_they_are():
    from ide_ref.verify import compare

    ours = {"w": torch.ones(2, 3, dtype=torch.float64).numpy()}
    assert compare(ours, {"w": torch.ones(2, 3, requires_grad=True)}).same
    half = compare(ours, {"w": torch.ones(2, 3, dtype=torch.bfloat16)})
    assert half.rows[0].status == "no numbers"
    assert sys.modules.get("port_under_test") is None
