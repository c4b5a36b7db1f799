"""The worked port to PyTorch passes every case."""

import types
from pathlib import Path

import pytest

from ide_ref.verify import compare, run_port

torch = pytest.importorskip("torch")

SOURCE = Path(__file__).parents[2] / "notebooks" / "port_torch.py"


@pytest.fixture(scope="module")
def Port():
    module = types.ModuleType("port_under_test")
    exec(compile(SOURCE.read_text(), SOURCE.name, "exec"), module.__dict__)
    return module.Port


def test_port_is_short():
    assert len(SOURCE.read_text().splitlines()) < 200


def test_port_passes_all_cases(Port, whole_pack):
    report = run_port(lambda case: Port(case).run(), directory=whole_pack)
    assert report.passed, report.table()
    assert len(report.results) == 82
    assert all(result.complete for result in report.results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_port_passes_all_cases_on_cuda(Port, whole_pack):
    def port(case):
        return {name: value.cpu() for name, value in Port(case, "cuda").run().items()}

    report = run_port(port, directory=whole_pack)
    assert report.passed, report.table()


def test_arrays_of_torch_are_compared_as_they_are():
    ours = {"w": torch.ones(2, 3, dtype=torch.float64).numpy()}
    assert compare(ours, {"w": torch.ones(2, 3, requires_grad=True)}).same
    half = compare(ours, {"w": torch.ones(2, 3, dtype=torch.bfloat16)})
    assert half.rows[0].status == "no numbers"
