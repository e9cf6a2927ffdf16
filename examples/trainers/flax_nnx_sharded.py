"""Flax NNX on many devices: partition metadata, under `jax.set_mesh`.

Run it with `python -m examples.trainers.flax_nnx_sharded`; to try it on one CPU, set
`XLA_FLAGS=--xla_force_host_platform_device_count=8`. The parameters' metadata say how
they are sharded, and `nnx.Optimizer` shards the moments in the same way. MoFO selects
the same coordinates as on one device, whether the mesh's axes are Auto or Explicit.

`with_metadata` is for trainers that place the state by such metadata, such as MaxText
and Tunix, and for states with arrays of other shapes than the parameters'.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mofo_jax

STEPS = 100


class Network(nnx.Module):
    """A perceptron whose hidden layer is sharded over devices."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        normal = nnx.initializers.lecun_normal()
        columns = nnx.with_partitioning(normal, (None, "model"))
        numbers = nnx.with_partitioning(nnx.initializers.normal(0.1), ("model",))
        self.up = nnx.Linear(8, 64, kernel_init=columns, bias_init=numbers, rngs=rngs)
        self.down = nnx.Param(numbers(rngs.params(), (64,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs `[batch, 8]` to outputs `[batch]`."""
        hidden = nnx.gelu(self.up(x))
        return jnp.sum(hidden * self.down[...][None], axis=1)


def batch(step: int, mesh: jax.sharding.Mesh) -> tuple[jax.Array, jax.Array]:
    """Draws inputs `[64, 8]` and targets `[64]`, sharded over devices."""
    x = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    place = jax.sharding.NamedSharding(mesh, P("data"))
    return jax.device_put((x, np.sin(x).sum(axis=1)), place)


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


def with_metadata(
    transformation: optax.GradientTransformation, state: Any
) -> optax.GradientTransformationExtraArgs:
    """Makes the arrays of a state say how they are sharded.

    `nnx.Optimizer` gives the metadata of parameters to moments. The matrices of
    `mofo_jax.scale_by_inverse_covariance` would have none, and trainers that place the
    state by its metadata would replicate them.

    Args:
      transformation: the transformation.
      state: its first state, sharded as in training. It is not copied, and is lost once
        a step donates it.
    """

    def annotated(x: jax.Array) -> nnx.Variable:
        return nnx.Variable(x, out_sharding=getattr(x.sharding, "spec", None))

    def init(params: Any) -> Any:
        del params
        return jax.tree.map(annotated, state)

    update = optax.with_extra_args_support(transformation).update
    return optax.GradientTransformationExtraArgs(init, update)


def train(
    transformation: optax.GradientTransformation, steps: int, mesh: jax.sharding.Mesh
) -> tuple[list[float], Any, Any]:
    """Trains from a fixed start; returns losses, parameters and state."""
    with jax.set_mesh(mesh):
        model = Network(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        losses = [
            float(train_step(model, optimizer, *batch(step, mesh)))
            for step in range(steps)
        ]
    return losses, nnx.state(model, nnx.Param), optimizer.opt_state


def main() -> None:
    """Trains in both kinds of mesh and prints the losses of a few steps."""
    optimizer = mofo_jax.mofo(1e-2)  # was: optax.adamw(1e-2)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        shape, types = (jax.device_count(), 1), (axis_type,) * 2
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=types)
        losses, _, _ = train(optimizer, STEPS, mesh)
        for step in range(0, STEPS, 20):
            print(f"{axis_type.name:8}  step {step:3}  loss {losses[step]:.4f}")


if __name__ == "__main__":
    main()
