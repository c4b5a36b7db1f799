"""(STEP) as one Triton kernel, to be put in the place of `port_torch_fast.neuron_step`: ``FastPort(case, fire=fire)``.

Leak, drive, threshold, reset by subtraction and the sum of (RATE) in one pass over memory: four numbers read
and three written for each neuron. On a GPU it is compiled; with TRITON_INTERPRET=1, set before this
is imported, Triton's interpreter runs it on arrays of the CPU.
"""

import torch
import triton
import triton.language as tl

SAMPLES, NEURONS = 4, 256  # of a program


@triton.jit
def step_kernel(
    u_at,
    total_at,
    drive_at,
    received_at,
    u_next_at,
    total_next_at,
    s_at,
    n_samples,
    n_neurons,
    LEAK: tl.constexpr,
    V_TH: tl.constexpr,
    N_SAMPLES: tl.constexpr,
    N_NEURONS: tl.constexpr,
):
    """One block of samples and neurons; all arrays are (B, n) in C order."""
    samples = tl.program_id(0) * N_SAMPLES + tl.arange(0, N_SAMPLES)[:, None]
    neurons = tl.program_id(1) * N_NEURONS + tl.arange(0, N_NEURONS)[None, :]
    inside = (samples < n_samples) & (neurons < n_neurons)
    at = samples.to(tl.int64) * n_neurons + neurons
    u = tl.load(u_at + at, mask=inside, other=0.0)
    # As numbers of the potentials' type: a plain argument would be rounded to float32, and a leak of 0.95 with it.
    leak, v_th = tl.full((), LEAK, u.dtype), tl.full((), V_TH, u.dtype)
    v = leak * u + tl.load(drive_at + at, mask=inside, other=0.0) + tl.load(received_at + at, mask=inside, other=0.0)
    s = (v >= v_th).to(u.dtype)
    tl.store(u_next_at + at, v - v_th * s, mask=inside)
    tl.store(total_next_at + at, leak * tl.load(total_at + at, mask=inside, other=0.0) + s, mask=inside)
    tl.store(s_at + at, s, mask=inside)


def fire(u, total, drive, received, leak, v_th):
    """`port_torch_fast.neuron_step` by the kernel; products and sums are rounded one by one, as there."""
    given = tuple(array.contiguous() for array in (u, total, drive, received))
    made, n = tuple(torch.empty_like(given[0]) for _ in range(3)), u[0].numel()
    grid = (triton.cdiv(len(u), SAMPLES), triton.cdiv(n, NEURONS))
    step_kernel[grid](*given, *made, len(u), n, leak, v_th, SAMPLES, NEURONS, enable_fp_fusion=False)
    return made


def machine_code(dtype, capability=90):
    """PTX of the kernel for a device of that compute capability; none has to be there."""
    pointer = {"float32": "*fp32", "float64": "*fp64"}[dtype]
    names = ("u_at", "total_at", "drive_at", "received_at", "u_next_at", "total_next_at", "s_at")
    signature = dict.fromkeys(names, pointer) | {"n_samples": "i32", "n_neurons": "i32"}
    constants = {"LEAK": 0.95, "V_TH": 2.0, "N_SAMPLES": SAMPLES, "N_NEURONS": NEURONS}
    source = triton.compiler.ASTSource(step_kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]
