"""The worked port to PyTorch passes every case; so does the fast one, eager, compiled and with its Triton kernel."""

import importlib.util
import shutil
import types
from pathlib import Path

import pytest

from ide_ref.verify import check_fixed_point, compare, conformance, run_port

torch = pytest.importorskip("torch")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOURCE = NOTEBOOKS / "port_torch.py"


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


def load_fast(name):
    """A module beside the port, afresh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(NOTEBOOKS))
        spec = importlib.util.spec_from_file_location(name, NOTEBOOKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fast():
    return load_fast("port_torch_fast")


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel of (STEP), run by Triton's interpreter on the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return load_fast("port_triton")


def test_fast_port_passes_all_cases(fast, whole_pack):
    report = run_port(fast.run, directory=whole_pack)
    assert report.passed, report.table()
    assert all(result.complete for result in report.results)


COMPILED = ["fashion-mnist-400-lif-spikes-float64-bn", "mnist-64c5-lif-static-float32-bn"]


def compiling(backend):
    """One graph of the whole step: a break of the graph is an error."""

    def transform(step):
        torch._dynamo.reset()
        return torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

    return transform


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the compiler's own
def test_fast_port_is_one_graph(fast, whole_pack):
    report = run_port(
        lambda case: fast.run(case, transform=compiling("aot_eager")),
        directory=whole_pack,
        names=["alexnet-f-lif-static-float64-bn-dropout"],
    )
    assert report.passed, report.table()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_fast_port_passes(fast, whole_pack, name):
    if shutil.which("c++") is None and not torch.cuda.is_available():
        pytest.skip("no C++ compiler for the code that torch.compile writes")
    report = run_port(lambda case: fast.run(case, transform=compiling("inductor")), directory=whole_pack, names=[name])
    assert report.passed, report.table()


def test_fast_port_goes_on_from_its_own_vectors_and_velocity(fast, whole_pack):
    case = next(c for c in conformance.load(whole_pack) if c.name == "mnist-64c5-lif-static-float64-bn")
    port = fast.FastPort(case)
    out, right = port.step(port.params, port.x, port.y, port.keep, port.start())
    new = {name: out[f"new/{name}"] for name in port.params}
    velocity = {name: out[f"velocity/{name}"] for name in case.params if f"velocity/{name}" in out}
    again, _ = port.step(new, port.x, port.y, port.keep, right, velocity)
    # The same from the exact first vector of the new weights, and what momentum adds by hand.
    port.params = new
    afresh, _ = port.step(new, port.x, port.y, port.keep, port.start())
    for name, before in velocity.items():
        moved = afresh[f"velocity/{name}"] + case.config["sgd"]["momentum"] * before
        torch.testing.assert_close(again[f"velocity/{name}"], moved, rtol=1e-9, atol=1e-12)
        assert name.endswith("alpha") or torch.equal(
            again[f"new/{name}"], new[name] - case.config["sgd"]["rate"] * again[f"velocity/{name}"]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (4, 256), (9, 2, 5, 31)])
def test_triton_kernel_is_the_step(fast, interpreted, shape, dtype):
    u, total, drive, received = (3 * torch.randn(shape, dtype=dtype) for _ in range(4))
    drive.view(-1)[0], u.view(-1)[0], received.view(-1)[0] = 2.0, 0.0, 0.0  # v is V_th: a spike
    found = interpreted.fire(u, total, drive, received, 0.95, 2.0)
    for ours, theirs in zip(found, fast.neuron_step(u, total, drive, received, 0.95, 2.0), strict=True):
        assert torch.equal(ours, theirs)
    assert found[2].view(-1)[0] == 1


def test_fast_port_with_the_triton_kernel_passes(fast, interpreted, whole_pack):
    names = [name for name in (c.name for c in conformance.load(whole_pack)) if "-lif-" in name and "-bn" in name]
    report = run_port(lambda case: fast.run(case, fire=interpreted.fire), directory=whole_pack, names=names[::6])
    assert report.passed, report.table()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_triton_kernel_compiles_for_a_gpu_that_is_not_there(dtype):
    """With the leak in the potentials' own precision, and no sum joined to a product."""
    pytest.importorskip("triton", reason="Triton is not installed")
    leak = {"float32": "0f3F733333", "float64": "0d3FEE666666666666"}[dtype]
    code = load_fast("port_triton").machine_code(dtype)
    assert leak in code
    assert "fma" not in code


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fast_port_passes_on_cuda(fast, whole_pack):
    pytest.importorskip("triton", reason="Triton is not installed")
    fire = load_fast("port_triton").fire
    for options in ({}, {"fire": fire}):
        report = run_port(lambda case, options=options: fast.run(case, "cuda", **options), directory=whole_pack)
        assert report.passed, report.table()


@pytest.mark.parametrize(("fault", "stage"), [("s", "spikes"), ("u", "spikes"), ("total", "rates")])
def test_a_wrong_step_of_the_fast_port_is_named(fast, whole_pack, fault, stage):
    def fire(u, total, drive, received, leak, v_th):
        v = leak * u + drive + received
        s = ((v > 2 * v_th) if fault == "s" else (v >= v_th)).to(v.dtype)
        after = v * (1 - s) if fault == "u" else v - v_th * s
        return after, (1.0 if fault == "total" else leak) * total + s, s

    names = ["mnist-64c5-lif-static-float64-bn"]
    report = run_port(lambda case: fast.run(case, fire=fire), directory=whole_pack, names=names)
    assert report.first.stage == stage
