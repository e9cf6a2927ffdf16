"""The shardings of covariances, and of arrays that are computed from them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def of(x: Any) -> NamedSharding | None:
    """Returns the sharding of a concrete or abstract array over a mesh, or None."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    return sharding


def follow(
    param: Any, axes: Sequence[int], batch_axes: Sequence[int], length: int
) -> NamedSharding | None:
    """Returns the sharding of a parameter's matrices.

    Batch axes are sharded like those of the parameter. The other mesh axes of the
    parameter's sharding, starting with those of contracted axes, shard the rows, as far
    as they divide them evenly.

    Args:
      param: The parameter, concrete or abstract.
      axes: Its contracted axes.
      batch_axes: Its axes that are leading axes of the matrices.
      length: The length of the matrices' last two axes.

    Returns:
      A sharding of ``[*batch, length, length]``; None if that of the parameter is not
      known, or not over a mesh.
    """
    sharding = of(param)
    if sharding is None:
        return None
    mesh, rank = sharding.mesh, len(param.shape)
    spec = (*sharding.spec, *[None] * (rank - len(sharding.spec)))
    lead = [spec[axis] for axis in batch_axes]
    rest = [axis for axis in range(rank) if axis not in (*axes, *batch_axes)]
    rows: list[str] = []
    for name in _names(spec[axis] for axis in (*axes, *rest)):
        if length % math.prod(mesh.shape[n] for n in (*rows, name)) == 0:
            rows.append(name)
    return NamedSharding(mesh, PartitionSpec(*lead, tuple(rows) or None, None))


def divide(
    sharding: NamedSharding | None, batch: int, shape: Sequence[int]
) -> NamedSharding | None:
    """Returns the sharding of an array computed from matrices, such as their blocks.

    Args:
      sharding: The sharding of the matrices, which have `batch` leading axes; None if
        it is not known, or not over a mesh.
      batch: The number of leading axes of both arrays.
      shape: The shape of the computed array. The first of its other axes that can be
        sharded like the matrices' rows is sharded.

    Returns:
      A sharding, or None like that of the matrices.
    """
    if sharding is None:
        return None
    spec = (*sharding.spec, *[None] * (batch + 1))
    rows = _names([spec[batch]])
    parts = math.prod(sharding.mesh.shape[name] for name in rows)
    result: list[Any] = [*spec[:batch], *[None] * (len(shape) - batch)]
    for axis in range(batch, len(shape)):
        if shape[axis] % parts == 0:
            result[axis] = spec[batch]
            break
    return NamedSharding(sharding.mesh, PartitionSpec(*result))


def _names(entries: Any) -> list[str]:
    names = []
    for entry in entries:
        if isinstance(entry, str):
            names.append(entry)
        elif isinstance(entry, tuple):
            names.extend(entry)
    return names


def constrain(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Returns an array with a sharding, if it is known."""
    if sharding is None:
        return x
    if is_explicit(sharding.mesh):
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def is_explicit(mesh: Any) -> bool:
    """Returns whether shardings over a mesh are part of arrays' types."""
    return not mesh.empty and set(mesh.axis_types) == {AxisType.Explicit}


def whole_along(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns an array that is not sharded along some axes, in an Explicit mesh."""
    sharding = jax.typeof(x).sharding
    if not is_explicit(sharding.mesh):
        return x
    spec = [None if i in axes else part for i, part in enumerate(sharding.spec)]
    if PartitionSpec(*spec) == sharding.spec:
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def known(x: jax.Array, sharding: NamedSharding | None) -> NamedSharding | None:
    """Returns the sharding of an array, if it is known.

    Args:
      x: The array.
      sharding: The sharding outside of the program, if known.

    Returns:
      The sharding of its type in an Explicit mesh, otherwise `sharding`; None if it is
      unknown, for a single device, and within `shard_map`.
    """
    own = jax.typeof(x).sharding
    if is_explicit(own.mesh):
        return NamedSharding(own.mesh, own.spec)
    automatic = own.mesh.empty or set(own.mesh.axis_types) == {AxisType.Auto}
    if not automatic or sharding is None or sharding.mesh.size == 1:
        return None
    return NamedSharding(sharding.mesh, _padded(tuple(sharding.spec), x.ndim))


def moved_off(
    sharding: NamedSharding,
    shape: Sequence[int],
    axes: Sequence[int],
    kept: Sequence[int],
) -> list[NamedSharding]:
    """Returns shardings of an array on the way to one that leaves some axes whole.

    The mesh axes of each of these axes, one after the other, shard another axis if they
    divide it evenly. Moving several at once would make the compiler gather the array.

    Args:
      sharding: The sharding of the array.
      shape: The shape of the array.
      axes: The axes that must not be sharded.
      kept: The axes whose sharding must not change.
    """
    spec: list[Any] = list(sharding.spec)
    others = [axis for axis in range(len(shape)) if axis not in (*axes, *kept)]
    result = []
    for axis in axes:
        moved = _names([spec[axis]])
        if not moved:
            continue
        spec[axis] = None
        for other in others:
            names = (*_names([spec[other]]), *moved)
            parts = math.prod(sharding.mesh.shape[name] for name in names)
            if shape[other] % parts == 0:
                spec[other] = names
                break
        result.append(NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    return result


def along(sharding: NamedSharding, axes: Sequence[int], rank: int) -> NamedSharding:
    """Returns the sharding of an array whose first axes are those of another array.

    Args:
      sharding: The sharding of the other array.
      axes: The axes of the other array.
      rank: The number of axes of the array. Its remaining axes are not sharded.
    """
    spec = [sharding.spec[axis] for axis in axes]
    return NamedSharding(sharding.mesh, _padded(spec, rank))


def _padded(spec: Sequence[Any], rank: int) -> PartitionSpec:
    return PartitionSpec(*spec, *[None] * (rank - len(spec)))


def replicated(x: jax.Array) -> Any:
    """Returns the sharding of a replicated result, or None if it must not be given.

    Args:
      x: An operand of the operation.
    """
    mesh = jax.typeof(x).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if is_explicit(mesh) else None
