"""Check the gradient of a deep equilibrium layer in PyTorch: ide-ref gradcheck --function tanh_deq_torch:layer."""

import torch

torch.manual_seed(0)
W, F, b = 0.4 * torch.randn(8, 8) / 8**0.5, torch.randn(8, 3), torch.randn(8)
x, cotangent = torch.randn(4, 3), torch.randn(4, 8)


def f(z, x, theta):
    return torch.tanh(z @ theta["W"].T + x @ theta["F"].T + theta["b"])


def layer():
    theta = {name: value.double().requires_grad_() for name, value in {"W": W, "F": F, "b": b}.items()}
    z = torch.zeros(4, 8, dtype=torch.double)
    with torch.no_grad():
        for _ in range(100):
            z = f(z, x.double(), theta)
    # The layer's backward pass: one more fixed point, beta = J^T beta + cotangent, then one vector-Jacobian product.
    z_in = z.clone().requires_grad_()
    out = f(z_in, x.double(), theta)
    beta = cotangent.double()
    for _ in range(100):
        (pulled,) = torch.autograd.grad(out, z_in, beta, retain_graph=True)
        beta = pulled + cotangent.double()
    gradient = dict(zip(theta, torch.autograd.grad(out, list(theta.values()), beta), strict=True))
    return {"f": f, "z": z, "theta": theta, "x": x, "gradient": gradient, "cotangent": cotangent}


def one_step():
    """The same with a bug: beta is the cotangent itself, as if z had been computed by one application of f."""
    arguments = layer()
    theta = arguments["theta"]
    out = f(arguments["z"], x.double(), theta)
    gradient = dict(zip(theta, torch.autograd.grad(out, list(theta.values()), cotangent.double()), strict=True))
    return {**arguments, "gradient": gradient}
