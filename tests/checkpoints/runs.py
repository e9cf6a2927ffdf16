"""A small MoFO run with given gradients, on any devices and under any sharding."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import mofo_jax
from examples.trainers.orbax_checkpoints import describe
from tests.helpers import random_generator

SHAPES = {
    "matrix": ((16, 24), "float32"),
    "stacked": ((8, 8, 16), "float32"),
    "half": ((16, 8), "bfloat16"),
    "scale": ((8,), "float32"),
}
OPTIMIZER = mofo_jax.mofo(
    optax.linear_schedule(1e-2, 1e-3, 20),
    weight_decay=0.1,
    block_axes={"matrix": (), "stacked": (0,), "half": (), "scale": ()},
)
BEFORE = 3


def mesh_of(devices: int, axis_type: AxisType = AxisType.Auto) -> Mesh:
    """Returns a mesh over the first devices."""
    return jax.make_mesh(
        (devices,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:devices]
    )


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Returns one array per parameter; those of seed 0 are the first parameters.

    They are rounded, so that momenta tie within and across devices.
    """
    rng = random_generator(seed)
    return {
        name: rng.normal(size=shape).round(1).astype(jnp.dtype(dtype))
        for name, (shape, dtype) in SHAPES.items()
    }


def place(tree: Any, mesh: Mesh, axis: int) -> Any:
    """Shards every array over the given axis, or the last one if it has fewer."""

    def put(x: Any) -> jax.Array:
        spec: list[str | None] = [None] * x.ndim
        spec[min(axis, x.ndim - 1)] = "x"
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, tree)


@jax.jit
def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
    """Returns parameters and state after a step."""
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def train(kept: Any, mesh: Mesh, axis: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Takes one step for each seed of gradients."""
    with jax.set_mesh(mesh):
        for seed in seeds:
            gradients = place(arrays(seed), mesh, axis)
            kept = step(kept["params"], kept["state"], gradients)
            kept = dict(zip(("params", "state"), kept, strict=True))
    return kept


def start(mesh: Mesh, axis: int) -> dict[str, Any]:
    """Returns parameters and state after the first `BEFORE` steps."""
    params = place(arrays(0), mesh, axis)
    kept = {"params": params, "state": OPTIMIZER.init(params)}
    # The count is also placed as after a step, so that one program suffices.
    kept = jax.device_put(
        kept, jax.tree.map(lambda leaf: leaf.sharding, describe(OPTIMIZER, params))
    )
    return train(kept, mesh, axis, range(1, BEFORE + 1))
