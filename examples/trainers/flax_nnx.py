"""Flax NNX: an `nnx.Optimizer` with MoFO instead of AdamW.

Run it with `python -m examples.trainers.flax_nnx`. A small network learns a function of
eight numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import mofo_jax

STEPS = 100


class Network(nnx.Module):
    """A multi-layer perceptron with eight inputs and one output."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(8, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.last = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs `[batch, 8]` to outputs `[batch]`."""
        hidden = nnx.gelu(self.second(nnx.gelu(self.first(x))))
        return self.last(hidden)[:, 0]


def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """Draws inputs `[64, 8]` and targets `[64]`."""
    x = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x).sum(axis=1))


# NNX returns its updated arguments in order, as donation requires.
@nnx.jit(donate_argnums=(0, 1))
def train_step(
    model: Network, optimizer: nnx.Optimizer, x: jax.Array, target: jax.Array
) -> jax.Array:
    """Takes one step and returns the loss before it."""

    def loss(model: Network) -> jax.Array:
        return jnp.mean((model(x) - target) ** 2)

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def train(
    transformation: optax.GradientTransformation, steps: int
) -> tuple[list[float], Any, Any]:
    """Trains from a fixed start; returns losses, parameters and state."""
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    losses = [
        float(train_step(model, optimizer, *batch(step))) for step in range(steps)
    ]
    return losses, nnx.state(model, nnx.Param), optimizer.opt_state


def main() -> None:
    """Trains for a few steps and prints the losses."""
    optimizer = mofo_jax.mofo(3e-3)  # was: optax.adamw(3e-3)
    losses, _, _ = train(optimizer, STEPS)
    for step in range(0, STEPS, 20):
        print(f"step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main()
