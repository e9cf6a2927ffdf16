"""A model's parameters as a plain tree, and what is measured on the tree.

Training and evaluation are pure functions of a nested dict of arrays; the NNX module
is put together from it inside them.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.sharding import parameter_path

if TYPE_CHECKING:
    from examples.finetune.llama import Llama

KINDS = ("embedding", "attention", "mlp", "norm", "head")


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


def kind(path: str) -> str:
    """Which of KINDS a parameter belongs to, by its path.

    Raises:
      ValueError: no kind is known for the path.
    """
    parts = path.split("/")
    if parts[0] == "embed":
        return "embedding"
    if parts[0] == "head":
        return "head"
    for part in parts[:-1]:
        if part.endswith("norm"):
            return "norm"
        if part in ("attention", "mlp"):
            return part
    raise ValueError(f"No tensor kind is known for the parameter {path}.")


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


@jax.jit
def _difference(leaf: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    step = leaf.astype(jnp.float32) - start.astype(jnp.float32)
    return jnp.sum(jnp.square(step), axis=-1), count_moved(leaf, start)


def count_moved(new: jax.Array, old: jax.Array) -> jax.Array:
    """Counts the coordinates in which two arrays differ, as a float32 scalar."""
    # Whole numbers along the last axis first: a float32 sum of ones stops growing at
    # 2**24, and a tensor may have more than 2**31 coordinates.
    moved = jnp.atleast_1d(new != old)
    return jnp.sum(jnp.sum(moved, axis=-1, dtype=jnp.int32).astype(jnp.float32))


def travelled(
    params: Mapping[str, Any], start: Mapping[str, Any]
) -> tuple[dict[str, float], float]:
    """How far parameters are from where they started.

    Args:
      params: a nested dict of arrays.
      start: the same tree, for example on the host; compared one tensor at a time.

    Returns:
      The Euclidean distance, under "total" and by tensor kind, and the share of
      coordinates that differ.
    """
    squares: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    moved, size = 0.0, 0
    starts = flat(start)
    for path, leaf in flat(params).items():
        row_squares, count = _difference(leaf, starts[path])
        squares[kind(path)] += float(np.sum(np.asarray(row_squares, np.float64)))
        moved += float(count)
        size += leaf.size
    distance = {"total": sum(squares.values()) ** 0.5}
    present = {kind(path) for path in starts}
    distance |= {name: squares[name] ** 0.5 for name in KINDS if name in present}
    return distance, moved / size
