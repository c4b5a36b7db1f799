"""Check the gradient of a ReLU equilibrium layer in JAX: ide-ref gradcheck --function relu_deq_jax:layer."""

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
keys = jax.random.split(jax.random.key(0), 5)
W = 0.4 * jax.random.normal(keys[0], (8, 8)) / 8**0.5
F, b = jax.random.normal(keys[1], (8, 3)), jax.random.normal(keys[2], (8,))
x, cotangent = jax.random.normal(keys[3], (4, 3)), jax.random.normal(keys[4], (4, 8))


@jax.jit
def f(z, x, theta):
    return jnp.maximum(z @ theta["W"].T + x @ theta["F"].T + theta["b"], 0.0)


def layer(n_products=100):
    theta = {"W": W, "F": F, "b": b}
    z = jnp.zeros((4, 8))
    for _ in range(100):
        z = f(z, x, theta)
    _, pull_back = jax.vjp(f, z, x, theta)
    beta = cotangent
    for _ in range(n_products):
        beta = pull_back(beta)[0] + cotangent
    return {"f": f, "z": z, "theta": theta, "x": x, "gradient": pull_back(beta)[2], "cotangent": cotangent}


def early():
    """The same with a bug: beta is taken after three products."""
    return layer(n_products=3)
