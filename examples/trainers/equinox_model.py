"""Equinox: parameters are filtered from a module, with `None` in place of the rest.

Run it with `python -m examples.trainers.equinox_model` after `pip install equinox`. As
for any Optax optimizer, `init` receives the result of `eqx.filter`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mofo_jax

STEPS = 100


class Network(eqx.Module):
    """A multi-layer perceptron with a number and a name that are not trained."""

    layers: eqx.nn.MLP
    trained_on: jax.Array
    name: str = "network"

    def __init__(self, key: jax.Array) -> None:
        self.layers = eqx.nn.MLP(8, "scalar", 64, 2, jax.nn.gelu, key=key)
        self.trained_on = jnp.array(0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs `[batch, 8]` to outputs `[batch]`."""
        return jax.vmap(self.layers)(x)


def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """Draws inputs `[64, 8]` and targets `[64]`."""
    x = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x).sum(axis=1))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    data: tuple[jax.Array, jax.Array],
    model: Network,
    state: optax.OptState,
    optimizer: optax.GradientTransformation,
) -> tuple[Network, optax.OptState, jax.Array]:
    """Returns model and state in argument order, as donation requires, and the loss."""
    x, target = data

    def loss(model: Network) -> jax.Array:
        return jnp.mean((model(x) - target) ** 2)

    value, grads = eqx.filter_value_and_grad(loss)(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(grads, state, params)
    return eqx.apply_updates(model, updates), state, value


def train(
    optimizer: optax.GradientTransformation, steps: int
) -> tuple[list[float], Any, Any]:
    """Trains from a fixed start; returns losses, parameters and state."""
    model = Network(jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    losses = []
    for step in range(steps):
        model, state, loss = train_step(batch(step), model, state, optimizer)
        losses.append(float(loss))
    return losses, eqx.filter(model, eqx.is_inexact_array), state


def main() -> None:
    """Trains for a few steps and prints the losses."""
    optimizer = mofo_jax.mofo(3e-3)  # was: optax.adamw(3e-3)
    losses, _, _ = train(optimizer, STEPS)
    for step in range(0, STEPS, 20):
        print(f"step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main()
