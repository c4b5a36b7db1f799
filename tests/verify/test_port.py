"""The worked port to PyTorch passes every case."""

import types
from pathlib import Path

import pytest

from ide_ref.verify import check_fixed_point, compare, conformance, run_port

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
    assert len(report.results) == 87
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
    for dtype, grain in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        half = compare({"w": ours["w"] / 3}, {"w": torch.full((2, 3), 1 / 3, dtype=dtype)})
        assert half.same
        assert half.rows[0].detail == f"{str(dtype)[6:]}, compared to {grain:.1e}"


def test_a_gradient_of_torch_is_judged_as_it_is():
    W, one = 0.3 * torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    z = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - W, one)
    gradient = {"W": torch.outer(one / 0.7, z)}
    report = check_fixed_point(lambda z, x, theta: theta["W"] @ z + x, z, {"W": W}, one, gradient, cotangent=one)
    assert report.verdict == "right"


def test_half_precision_of_torch_is_named_in_a_port(whole_pack):
    (case, *_) = conformance.load(whole_pack)
    name = next(name for name in case.expected if name.startswith("weight/"))
    given = {name: torch.from_numpy(case.expected[name]).to(torch.bfloat16)}
    told = f"'{name}' has dtype bfloat16; expected {case.config['dtype']}"
    assert conformance.check(case, given).divergence.detail == told
