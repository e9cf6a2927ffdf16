"""Where parameters and batches lie on the devices: one table for everything.

The axes of the mesh: ``data`` splits the batch and copies the parameters; ``fsdp``
splits both; ``tensor`` splits the width of attention and feed-forward layers.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from examples.finetune.command.errors import InputError

AXES = ("data", "fsdp", "tensor")

# By the end of a parameter's path. Kernels are [in, out]: what `tensor` splits on the
# way into attention or feed-forward it splits on the way out too, so that each device
# works on its own heads and columns and one sum ends the layer.
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
# LoRA's factors, [in, rank] and [rank, out], are split as their kernel's own sides are.
_TABLE |= {
    path.removesuffix("kernel") + f"lora/lora_{factor}": split
    for path, axes in [*_TABLE.items()]
    if path.endswith("/kernel")
    for factor, split in (("a", (axes[0], None)), ("b", (None, axes[-1])))
}


def make_mesh(description: str) -> Mesh:
    """Lays all devices out as a mesh.

    Args:
      description: sizes by axis, such as ``"fsdp=4,tensor=2"``. Axes not named have
        size 1, but for ``data``, which takes the devices that are left; ``""`` is
        data parallelism over all devices.

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
    """Writes a key path of JAX as a parameter's path, ``layers/0/mlp/up/kernel``."""
    # NNX's states end each path in the variable's own attribute.
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Says how one array is split.

    Args:
      path: ends in a parameter's path; what stands before it (the layer's number, a
        place in an optimizer's state) does not matter.
      shape: the array's shape. Axes before those of the table, as a scan over layers
        stacks them, stay whole.
      mesh: from ``make_mesh``.

    Returns:
      The table's entry; a dimension that its mesh axis does not divide stays whole,
      and so do arrays of a single number.

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
      params: arrays or ``jax.ShapeDtypeStruct``: a model's parameters, scanned or
        not, or an optimizer's state with moments of them.
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
    """Returns how arrays ``[B, ...]`` of a batch are split: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def own_rows(where: NamedSharding, rows: int) -> list[int]:
    """Returns which rows of a batch lie on this process's devices, in order.

    Args:
      where: from ``batch_sharding``.
      rows: of the batch.
    """
    parts = where.addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in parts if index for row in range(rows)[index[0]]})


def place_batch(
    batch: Mapping[str, np.ndarray], where: NamedSharding
) -> dict[str, jax.Array]:
    """Puts a batch of which every process has all rows on the devices."""
    return {
        name: jax.make_array_from_callback(x.shape, where, x.__getitem__)
        for name, x in batch.items()
    }


def place_rows(
    batch: Mapping[str, np.ndarray], where: NamedSharding, rows: int
) -> dict[str, jax.Array]:
    """Puts a batch of which every process has its own rows on the devices.

    Args:
      batch: arrays [R, ...] of the rows that ``own_rows`` names.
      where: from ``batch_sharding``.
      rows: of the whole batch.

    Returns:
      Arrays [rows, ...].
    """
    own = own_rows(where, rows)

    def placed(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return x[np.searchsorted(own, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), where, part)

    return {name: placed(x) for name, x in batch.items()}


def row_shards(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def keep_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Holds an activation ``[B, ...]`` to the sharding of its batch.

    Left to itself the compiler may follow the parameters instead, and give every
    device all rows and a slice of the width: under ``fsdp`` then each holds the logits
    of the whole batch. Without a mesh, or with rows that do not divide, nothing is
    asked.
    """
    if mesh is None or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def beside(x: jax.Array, y: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Puts the rows of two batches into one; no row leaves its device.

    Args:
      x: ``[B, ...]``, split as a batch over the mesh.
      y: ``[R, ...]``, likewise.
      mesh: from ``make_mesh``; None for one device.

    Returns:
      ``[B + R, ...]``, the rows of each device side by side.
    """
    shards = 1 if mesh is None else row_shards(mesh)
    parts = [each.reshape(shards, -1, *each.shape[1:]) for each in (x, y)]
    return keep_rows(jnp.concatenate(parts, 1).reshape(-1, *x.shape[1:]), mesh)


def apart(xy: jax.Array, rows: int, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Undoes ``beside``.

    Args:
      xy: what it returned, or something of the same rows.
      rows: B, the number of rows of the first batch.
      mesh: as for ``beside``.
    """
    shards = 1 if mesh is None else row_shards(mesh)
    parts = jnp.split(xy.reshape(shards, -1, *xy.shape[1:]), [rows // shards], 1)
    x, y = (keep_rows(part.reshape(-1, *xy.shape[1:]), mesh) for part in parts)
    return x, y
