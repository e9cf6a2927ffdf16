"""A model's parameters as a plain tree.

Training and evaluation are pure functions of a nested dict of arrays, from which they
reconstruct the NNX module.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from examples.finetune.model.sharding import parameter_path
from examples.finetune.system.hosts import fetch

if TYPE_CHECKING:
    from examples.finetune.model.decoder import Decoder


def split(model: "Decoder") -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Splits a model into its structure and its parameters.

    Returns:
      A hashable graph definition and a nested dict of arrays, which `nnx.merge` joins
      again.
    """
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves by path, such as `layers/3/mlp/up/kernel`, in sorted order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {parameter_path(path): leaf for path, leaf in leaves}
    return dict(sorted(named.items()))


def to_host(params: Any) -> Any:
    """Copies a tree of arrays to host memory, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.array(fetch(leaf)), params)


class HostCopy:
    """A copy, in host memory, of an array's shards on this process's devices.

    Attributes:
      shape: the shape of the whole array.
    """

    def __init__(self, array: jax.Array) -> None:
        """Copies."""
        self.shape = array.shape
        self._parts = {
            _borders(shard.index): np.array(shard.data)
            for shard in array.addressable_shards
        }

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the shard of a device by its position in the whole array."""
        return self._parts[_borders(index)]


def _borders(index: tuple[slice, ...]) -> tuple[tuple[int | None, int | None], ...]:
    return tuple((part.start, part.stop) for part in index)


def keep(params: Any) -> Any:
    """Copies a tree of arrays to host memory, as a tree of `HostCopy`."""
    return jax.tree.map(HostCopy, params)


def place(host: Any, places: Any) -> Any:
    """Puts a copied tree on the devices.

    Args:
      host: from `keep`, or whole NumPy arrays.
      places: a tree of shardings; after `keep`, those of the copied arrays.
    """

    def placed(leaf: Any, where: jax.sharding.Sharding) -> jax.Array:
        indices = where.addressable_devices_indices_map(leaf.shape)
        # Without `may_alias=False`, the CPU backend uses the host's memory, and a step
        # with donation would overwrite the copy from which later arms start.
        parts = [
            jax.device_put(leaf[index], device, may_alias=False)
            for device, index in indices.items()
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, parts)

    return jax.tree.map(placed, host, places)


def shardings(tree: Any) -> Any:
    """Returns the sharding of every array of a tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
