"""A model's parameters as a plain tree.

Training and evaluation are pure functions of a nested dict of arrays; the NNX module
is put together from it inside them.
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
    """Takes a model apart into its structure and its parameters.

    Returns:
      A hashable graph definition and a nested dict of arrays; `nnx.merge` puts them
      together again.
    """
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves by their path, as in `layers/3/mlp/up/kernel`, in sorted order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {parameter_path(path): leaf for path, leaf in leaves}
    return dict(sorted(named.items()))


def to_host(params: Any) -> Any:
    """A copy of a tree of arrays in host memory, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.array(fetch(leaf)), params)


class HostCopy:
    """What this process's devices hold of an array, in host memory.

    Attributes:
      shape: of the whole array.
    """

    def __init__(self, array: jax.Array) -> None:
        """Copies."""
        self.shape = array.shape
        self._parts = {
            _borders(shard.index): np.array(shard.data)
            for shard in array.addressable_shards
        }

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part that a device holds, by its place in the whole."""
        return self._parts[_borders(index)]


def _borders(index: tuple[slice, ...]) -> tuple[tuple[int | None, int | None], ...]:
    return tuple((part.start, part.stop) for part in index)


def keep(params: Any) -> Any:
    """A copy of a tree of arrays as a tree of `HostCopy`."""
    return jax.tree.map(HostCopy, params)


def place(host: Any, places: Any) -> Any:
    """Puts a copy of a tree on the devices.

    Args:
      host: from `keep`, or whole NumPy arrays.
      places: a tree of shardings; after `keep` those of what was copied.
    """

    def placed(leaf: Any, where: jax.sharding.Sharding) -> jax.Array:
        indices = where.addressable_devices_indices_map(leaf.shape)
        # Without `may_alias=False` the CPU backend borrows the host's memory, and a
        # donated step would write its results over the copy that later arms start from.
        parts = [
            jax.device_put(leaf[index], device, may_alias=False)
            for device, index in indices.items()
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, parts)

    return jax.tree.map(placed, host, places)


def shardings(tree: Any) -> Any:
    """Where every array of a tree lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
