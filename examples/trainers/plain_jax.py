"""Plain JAX: `jax.jit`, and `jax.shard_map`, in which the optimizer sees only shards.

Run it with `python -m examples.trainers.plain_jax`; to try it on one CPU, set
`XLA_FLAGS=--xla_force_host_platform_device_count=8`. Each device keeps some rows of
every kernel, gathers the kernels for the computation, and receives the gradients of
its own rows. MoFO needs the name of the mesh axis, or each shard would select
separately. Under `jax.jit`, as in `whole_step`, arrays are whole however they are
sharded, and `axis_name` must not be passed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mofo_jax

STEPS = 100
AXIS = "shards"
SPECS = {"up": P(AXIS), "bias": P(), "down": P(AXIS)}


def init_params() -> dict[str, jax.Array]:
    """Returns two kernels, `[8, 64]` and `[64, 1]`, and a bias `[64]`."""
    generator = np.random.default_rng(0)
    up, down = generator.normal(0, 0.35, (8, 64)), generator.normal(0, 0.12, (64, 1))
    params = {"up": up, "bias": np.zeros(64), "down": down}
    return {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws inputs `[64, 8]` and targets `[64]`."""
    x = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    return x, np.sin(x).sum(axis=1)


def loss_of(params: dict[str, jax.Array], x: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean squared error of a perceptron."""
    hidden = jax.nn.gelu(x @ params["up"] + params["bias"][None])
    return jnp.mean(((hidden @ params["down"])[:, 0] - target) ** 2)


def loss_of_shards(
    shards: dict[str, jax.Array], x: jax.Array, target: jax.Array
) -> jax.Array:
    """Returns the same loss from shards of the parameters and of the batch."""
    gather = functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
    params = {name: gather(shards[name]) for name in ("up", "down")}
    return jax.lax.pmean(loss_of({**shards, **params}, x, target), AXIS)


def update(
    optimizer: optax.GradientTransformation,
    loss: Any,
    params: Any,
    state: Any,
    data: tuple[jax.Array, jax.Array],
) -> tuple[Any, Any, jax.Array]:
    """Returns parameters and state in argument order (for donation), and the loss."""
    value, grads = jax.value_and_grad(loss)(params, *data)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def whole_step(
    optimizer: optax.GradientTransformation, params: Any, state: Any, data: Any
) -> tuple[Any, Any, jax.Array]:
    """Takes a step on whole arrays, however they are sharded."""
    return update(optimizer, loss_of, params, state, data)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def sharded_step(
    optimizer: optax.GradientTransformation, params: Any, state: Any, data: Any
) -> tuple[Any, Any, jax.Array]:
    """Takes a step on shards."""
    # The moments are sharded like their parameters; the count is not sharded.
    specs = optax.tree.map_params(
        optimizer, lambda _, p: p, state, SPECS, transform_non_params=lambda _: P()
    )
    mapped = jax.shard_map(
        functools.partial(update, optimizer, loss_of_shards),
        in_specs=(SPECS, specs, P(AXIS)),
        out_specs=(SPECS, specs, P()),
    )
    return mapped(params, state, data)


def train(
    optimizer: optax.GradientTransformation,
    steps: int,
    step_function: Any = sharded_step,
) -> tuple[list[float], Any, Any]:
    """Trains from a fixed start; returns losses, parameters and state."""
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        place = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), SPECS)
        params = jax.device_put(init_params(), place)
        # Not jitted: a jitted `init` would place all of the moments on every device.
        state, losses = optimizer.init(params), []
        for step in range(steps):
            params, state, loss = step_function(optimizer, params, state, batch(step))
            losses.append(float(loss))
    return losses, params, state


def main() -> None:
    """Trains for a few steps and prints the losses."""
    optimizer = mofo_jax.mofo(1e-2, axis_name=AXIS)  # was: optax.adamw(1e-2)
    losses, _, _ = train(optimizer, STEPS)
    for step in range(0, STEPS, 20):
        print(f"step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main()
