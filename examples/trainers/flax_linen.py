"""Flax Linen: a `TrainState`, layers under `nn.scan`, and logical partitioning.

Run it with `python -m examples.trainers.flax_linen`. `nn.scan` stacks all layers in one
tensor, here on axis 1, as MaxText does. MoFO is told that axis by `block_axes`, or
layers would compete with one another for the fraction. Parameters keep the boxes that
hold their logical axes, and so do the moments, so that one call finds all shardings.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen.spmd import logical_to_mesh_sharding
from flax.training.train_state import TrainState
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mofo_jax

STEPS = 100
LAYERS = 3
# Logical axes of arrays, and the mesh axes they are sharded over.
RULES = (("batch", "data"), ("embed", "data"), ("mlp", "model"), ("layers", None))


def dense(width: int, *axes: str | None) -> nn.Dense:
    """Returns a projection with the logical axes of its kernel."""
    init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
    return nn.Dense(width, use_bias=False, kernel_init=init)


class Layer(nn.Module):
    """A residual feed-forward layer."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Maps `[batch, 8]` to the same shape; the second argument is for `nn.scan`."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        hidden = dense(32, "embed", "mlp")(nn.RMSNorm(scale_init=ones)(x))
        return x + dense(8, "mlp", "embed")(nn.gelu(hidden)), None


class Network(nn.Module):
    """Three scanned layers and one output."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs `[batch, 8]` to outputs `[batch]`."""
        layers = nn.scan(
            Layer,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = layers(name="layers")(x, None)
        return dense(1, "embed", None)(x)[:, 0]


def apply(params: Any, x: jax.Array) -> jax.Array:
    """Returns the network's outputs."""
    outputs = Network().apply({"params": params}, x)
    assert isinstance(outputs, jax.Array)
    return outputs


def batch(step: int, mesh: jax.sharding.Mesh) -> tuple[jax.Array, jax.Array]:
    """Draws inputs `[64, 8]` and targets `[64]`, sharded over devices."""
    x = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    place = jax.sharding.NamedSharding(mesh, P("data"))
    return jax.device_put((x, np.sin(x).sum(axis=1)), place)


def train_step(
    state: TrainState, x: jax.Array, target: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Returns the next state, and the loss before the step."""

    def loss(params: Any) -> jax.Array:
        return jnp.mean((state.apply_fn(params, x) - target) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def init_state(optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the initial training state, with boxed parameters."""
    params = Network().init(jax.random.key(0), jnp.ones((1, 8)))["params"]
    return TrainState.create(apply_fn=apply, params=params, tx=optimizer)


def train(
    optimizer: optax.GradientTransformation, steps: int, mesh: jax.sharding.Mesh
) -> tuple[list[float], Any, Any]:
    """Trains from a fixed start; returns losses, parameters and state."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        abstract = jax.eval_shape(functools.partial(init_state, optimizer))
        specs = nn.get_partition_spec(abstract)
        shardings = logical_to_mesh_sharding(specs, mesh, RULES)
        # Without `out_shardings`, every device would hold all of the moments.
        make = jax.jit(init_state, static_argnums=0, out_shardings=shardings)
        state, losses = make(optimizer), []
        step_function = jax.jit(
            train_step, donate_argnums=0, out_shardings=(shardings, None)
        )
        for step in range(steps):
            state, loss = step_function(state, *batch(step, mesh))
            losses.append(float(loss))
    return losses, state.params, state.opt_state


def main() -> None:
    """Trains for a few steps and prints the losses."""
    layers = mofo_jax.PathRules({"^layers/": (1,)}, default=())
    optimizer = mofo_jax.mofo(1e-2, block_axes=layers)  # was: optax.adamw(1e-2)
    shape, types = (jax.device_count(), 1), (AxisType.Auto,) * 2
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=types)
    losses, _, _ = train(optimizer, STEPS, mesh)
    for step in range(0, STEPS, 20):
        print(f"step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main()
