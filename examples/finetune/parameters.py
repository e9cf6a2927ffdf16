"""A model's parameters as a plain tree.

Training and evaluation are pure functions of a nested dict of arrays; the NNX module
is put together from it inside them.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from examples.finetune.sharding import parameter_path

if TYPE_CHECKING:
    from examples.finetune.llama import Llama


def split(model: "Llama") -> tuple[nnx.GraphDef, dict[str, Any]]:
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
    return jax.tree.map(lambda leaf: np.array(leaf), params)


def place(host: Any, places: Any) -> Any:
    """Puts a host copy of a tree on the devices, by a tree of shardings."""
    # Without `may_alias=False` the CPU backend borrows the host's memory, and a
    # donated step would write its results over the copy that later arms start from.
    return jax.tree.map(
        lambda leaf, sharding: jax.device_put(leaf, sharding, may_alias=False),
        *(host, places),
    )


def shardings(tree: Any) -> Any:
    """Where every array of a tree lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def sha256(params: Mapping[str, Any]) -> str:
    """A digest of parameters that does not depend on how they are laid out.

    Over the leaves in sorted path order: path, dtype, shape (each as text with a
    newline after it), then the values as little-endian bytes.
    """
    digest = hashlib.sha256()
    for path, leaf in flat(params).items():
        array = np.asarray(leaf)
        digest.update(f"{path}\n{array.dtype.name}\n{array.shape}\n".encode())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()
