"""Gradient accumulation: gradients are averaged, and the optimizer runs once.

Run it with `python -m examples.trainers.gradient_accumulation`. A `jax.lax.scan` adds
up the gradients of micro-batches, and the optimizer is then called once with their
mean, as for one large batch. `optax.MultiSteps` gives the same numbers, but it runs the
whole optimizer, including the selection, for every micro-batch and discards the result
of all but the last. The program also prints the time of a step in both ways, for MoFO
and for AdamW.
"""

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mofo_jax

STEPS = 100
MICRO_BATCHES = 8
ROUNDS = 9
WIDTH = 2048  # The width of the network that is timed.


def init_params(width: int) -> dict[str, jax.Array]:
    """Returns kernels `[8, width]`, `[width, width]` and `[width, 1]`."""
    shapes = {"first": (8, width), "second": (width, width), "last": (width, 1)}
    generator = np.random.default_rng(0)
    return {
        name: jnp.asarray(generator.normal(0, shape[0] ** -0.5, shape), jnp.float32)
        for name, shape in shapes.items()
    }


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws inputs `[micro-batches, 8, 8]` and targets `[micro-batches, 8]`."""
    x = np.random.default_rng(step).normal(size=(MICRO_BATCHES, 8, 8))
    return x.astype(np.float32), np.sin(x).sum(axis=2).astype(np.float32)


def loss_of(params: dict[str, jax.Array], x: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean squared error of a perceptron."""
    hidden = jax.nn.gelu(jax.nn.gelu(x @ params["first"]) @ params["second"])
    return jnp.mean(((hidden @ params["last"])[:, 0] - target) ** 2)


def mean_gradients(params: Any, data: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
    """Returns the loss and the mean gradients over all micro-batches."""

    def add(sums: Any, micro_batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        found = jax.value_and_grad(loss_of)(params, *micro_batch)
        return optax.tree.add(sums, found), None

    # Gradients in bfloat16 should be summed in float32.
    zeros = optax.tree.zeros_like((jnp.float32(0), params))
    sums, _ = jax.lax.scan(add, zeros, data)
    return optax.tree.scale(1 / len(data[0]), sums)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_step(
    optimizer: optax.GradientTransformation, params: Any, state: Any, data: Any
) -> tuple[Any, Any, jax.Array]:
    """Takes one step of the optimizer on all micro-batches."""
    loss, grads = mean_gradients(params, data)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def micro_step(
    optimizer: optax.GradientTransformation, params: Any, state: Any, data: Any
) -> tuple[Any, Any, jax.Array]:
    """Calls an accumulating optimizer with one micro-batch."""
    loss, grads = jax.value_and_grad(loss_of)(params, *data)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(
    optimizer: optax.GradientTransformation, steps: int
) -> tuple[list[float], Any, Any]:
    """Trains from a fixed start; returns losses, parameters and state."""
    params, losses = init_params(64), []
    state = optimizer.init(params)
    for step in range(steps):
        params, state, loss = train_step(optimizer, params, state, batches(step))
        losses.append(float(loss))
    return losses, params, state


def step_times(optimizer: optax.GradientTransformation, rounds: int) -> list[float]:
    """Returns the median seconds of a step, with our sum and with `MultiSteps`."""
    many = optax.MultiSteps(optimizer, MICRO_BATCHES).gradient_transformation()
    once, each = (
        (init_params(WIDTH), tx.init(init_params(WIDTH))) for tx in (optimizer, many)
    )
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        data = batches(number)
        start = time.perf_counter()
        *once, _ = jax.block_until_ready(train_step(optimizer, *once, data))
        middle = time.perf_counter()
        for micro_batch in zip(*data, strict=True):
            *each, _ = micro_step(many, *each, micro_batch)
        jax.block_until_ready(each)
        seconds[0].append(middle - start)
        seconds[1].append(time.perf_counter() - middle)
    # The first round compiles.
    return [statistics.median(times[1:]) for times in seconds]


def main() -> None:
    """Prints the losses of a few steps, and the time of a step in both ways."""
    optimizer = mofo_jax.mofo(3e-3)  # was: optax.adamw(3e-3)
    losses, _, _ = train(optimizer, STEPS)
    for step in range(0, STEPS, 20):
        print(f"step {step:3}  loss {losses[step]:.4f}")
    for name, timed in {"mofo": optimizer, "adamw": optax.adamw(3e-3)}.items():
        once, each = step_times(timed, ROUNDS)
        print(
            f"{name}, {MICRO_BATCHES} micro-batches: {once:.3f} s per step, "
            f"with MultiSteps {each:.3f} s, {each / once:.2f} times as long"
        )


if __name__ == "__main__":
    main()
