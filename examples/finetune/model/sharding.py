"""The sharding of parameters and batches, in one table.

The axes of the mesh: ``data`` divides the batch and replicates the parameters; ``fsdp``
divides both; ``tensor`` divides the width of attention and feed-forward layers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from examples.finetune.command.errors import InputError

# Puts a batch on the devices, such as `place_batch` with a sharding.
Place = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]

Arrays = TypeVar("Arrays")
Results = TypeVar("Results")

AXES = ("data", "fsdp", "tensor")

# By the end of a parameter's path. Kernels are [in, out]. An axis that `tensor` divides
# in the first kernel of a layer is divided in the last one too, so that each device
# computes its own heads and columns, and one sum ends the layer.
_TABLE: dict[str, tuple[str | None, ...]] = {
    "embed/embedding": ("tensor", "fsdp"),
    "norm/scale": (None,),
    "attention/query/kernel": ("fsdp", "tensor"),
    "attention/key/kernel": ("fsdp", "tensor"),
    "attention/value/kernel": ("fsdp", "tensor"),
    "attention/query/bias": ("tensor",),
    "attention/key/bias": ("tensor",),
    "attention/value/bias": ("tensor",),
    "attention/output/kernel": ("tensor", "fsdp"),
    "mlp/gate/kernel": ("fsdp", "tensor"),
    "mlp/up/kernel": ("fsdp", "tensor"),
    "mlp/down/kernel": ("tensor", "fsdp"),
    "head/kernel": ("fsdp", "tensor"),
}
# LoRA factors, [in, rank] and [rank, out], are divided like the sides of their kernel.
_TABLE |= {
    path.removesuffix("kernel") + f"lora/lora_{factor}": split
    for path, axes in [*_TABLE.items()]
    if path.endswith("/kernel")
    for factor, split in (("a", (axes[0], None)), ("b", (None, axes[-1])))
}
# Covariances of low rank. The optimizer divides them among the devices itself.
_TABLE |= {"/diagonal": (None,), "/basis": (None, None)}


def make_mesh(description: str) -> Mesh:
    """Arranges all devices in a mesh.

    Args:
      description: sizes by axis, such as ``"fsdp=4,tensor=2"``. Other axes have size 1,
        except that ``data`` uses the remaining devices; ``""`` is data parallelism over
        all devices.

    Returns:
      A mesh with the axes ``data``, ``fsdp`` and ``tensor``, all of type Auto.

    Raises:
      InputError: if the description is malformed or does not fit the devices.
    """
    sizes = _sizes(description)
    devices = jax.device_count()
    named = math.prod(sizes.values())
    if "data" not in sizes and devices % named == 0:
        sizes["data"] = devices // named
    if math.prod(sizes.values()) != devices:
        wish = "times a whole number of data copies " if "data" not in sizes else ""
        raise InputError(
            f"The mesh {description!r} is made for {named} devices {wish}and there "
            f"{'is' if devices == 1 else 'are'} {devices}."
        )
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(description: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in filter(None, description.replace(" ", "").split(",")):
        axis, _, size = part.partition("=")
        if axis not in AXES:
            raise InputError(
                f"The mesh {description!r} has an unknown axis {axis!r}; the axes are "
                f"{', '.join(AXES)}."
            )
        if axis in sizes:
            raise InputError(f"The mesh {description!r} names {axis} twice.")
        if not (size.isascii() and size.isdecimal() and int(size) > 0):
            raise InputError(
                f"The mesh {description!r} must give {axis} a size of at least 1, got "
                f"{size!r}; write it like fsdp=4,tensor=2."
            )
        sizes[axis] = int(size)
    return sizes


def parameter_path(path: tuple[Any, ...]) -> str:
    """Returns a key path of JAX as a parameter's path, ``layers/0/mlp/up/kernel``."""
    # Paths in NNX's states end in an attribute of the variable.
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the sharding of an array.

    Args:
      path: ends in a parameter's path; its beginning (the layer's number, a place in an
        optimizer's state) does not matter.
      shape: the array's shape. Leading axes that are not in the table, such as stacked
        layers, are not divided.
      mesh: from ``make_mesh``.

    Returns:
      The table's entry, except that axes which the mesh axis does not divide evenly,
      and arrays of a single number, are not divided.

    Raises:
      ValueError: if the table does not cover the path.
    """
    if not shape:
        return PartitionSpec()
    found = [axes for suffix, axes in _TABLE.items() if path.endswith(suffix)]
    if not found:
        raise ValueError(f"No sharding is known for the parameter {path}.")
    padded = (None,) * (len(shape) - len(found[0])) + found[0]
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(padded, shape, strict=True)
        )
    )


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of a tree, as a tree of the same structure.

    Args:
      params: arrays or ``jax.ShapeDtypeStruct``: a model's parameters, scanned or not,
        or an optimizer's state with their moments.
      mesh: from ``make_mesh``.

    Raises:
      ValueError: if the table does not cover an array's path.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, partition_spec(parameter_path(path), leaf.shape, mesh)
        ),
        params,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch ``[B, ...]``: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def own_rows(where: NamedSharding, rows: int) -> list[int]:
    """Returns the rows of a batch that are on this process's devices, in order.

    Args:
      where: from ``batch_sharding``.
      rows: the number of rows of the batch.
    """
    parts = where.addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in parts if index for row in range(rows)[index[0]]})


def place_batch(
    batch: Mapping[str, np.ndarray], where: NamedSharding
) -> dict[str, jax.Array]:
    """Puts a batch on the devices, if every process has all of its rows."""
    return {
        name: jax.make_array_from_callback(x.shape, where, x.__getitem__)
        for name, x in batch.items()
    }


def place_rows(
    batch: Mapping[str, np.ndarray], where: NamedSharding, rows: int
) -> dict[str, jax.Array]:
    """Puts a batch on the devices, if every process has its own rows.

    Args:
      batch: arrays [R, ...] of the rows from ``own_rows``.
      where: from ``batch_sharding``.
      rows: the number of rows of the whole batch.

    Returns:
      Arrays [rows, ...].
    """
    own = own_rows(where, rows)

    def placed(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return x[np.searchsorted(own, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), where, part)

    return {name: placed(x) for name, x in batch.items()}


def row_shards(mesh: Mesh | None) -> int:
    """Returns the number of parts into which the rows of a batch are divided."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def keep_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Constrains an activation ``[B, ...]`` to the sharding of its batch.

    By default the compiler may follow the parameters instead, and give every device all
    rows and a part of the width; with ``fsdp``, each would then have the logits of the
    whole batch. Without a mesh, or if the rows do not divide evenly, there is no
    constraint.
    """
    if mesh is None or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def beside(x: jax.Array, y: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Joins the rows of two batches, all of which stay on their devices.

    Args:
      x: ``[B, ...]``, sharded as a batch over the mesh.
      y: ``[R, ...]``, sharded in the same way.
      mesh: from ``make_mesh``; None for one device.

    Returns:
      ``[B + R, ...]``, with the rows of each device side by side.
    """
    shards = row_shards(mesh)
    parts = [each.reshape(shards, -1, *each.shape[1:]) for each in (x, y)]
    return keep_rows(jnp.concatenate(parts, 1).reshape(-1, *x.shape[1:]), mesh)


def apart(xy: jax.Array, rows: int, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Reverses ``beside``.

    Args:
      xy: the result of ``beside``, or an array with the same rows.
      rows: B, the number of rows of the first batch.
      mesh: as for ``beside``.
    """
    shards = row_shards(mesh)
    parts = jnp.split(xy.reshape(shards, -1, *xy.shape[1:]), [rows // shards], 1)
    x, y = (keep_rows(part.reshape(-1, *xy.shape[1:]), mesh) for part in parts)
    return x, y


def by_parts(
    function: Callable[[Arrays], Results], arrays: Arrays, tokens: int
) -> Results:
    """Applies a function to some of a batch's tokens at a time, which saves memory.

    Args:
      function: takes arrays like ``arrays`` with fewer tokens of each row, and returns
        arrays ``[B, tokens of a row, ...]``. The results for a token must not depend on
        other tokens. Zeros complete the last part; their results are dropped.
      arrays: arrays ``[B, T, ...]``.
      tokens: the most tokens at a time, over all rows; at least one of each row.

    Returns:
      The function's results for all tokens, arrays ``[B, T, ...]``.
    """
    rows, length = jax.tree.leaves(arrays)[0].shape[:2]
    parts = math.ceil(length / max(1, tokens // rows))
    if parts <= 1:
        return function(arrays)
    size = math.ceil(length / parts)

    # Each part has tokens of all rows, which are on different devices.
    def cut(x: jax.Array) -> jax.Array:
        rest = (0, parts * size - length)
        x = jnp.pad(x, [(0, 0), rest, *[(0, 0)] * (x.ndim - 2)])
        return jnp.swapaxes(x.reshape(rows, parts, size, *x.shape[2:]), 0, 1)

    def joined(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :length]

    return jax.tree.map(joined, jax.lax.map(function, jax.tree.map(cut, arrays)))
