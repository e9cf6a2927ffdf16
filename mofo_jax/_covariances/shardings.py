"""How covariances, and what is made of them, are spread over devices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def of(x: Any) -> NamedSharding | None:
    """Returns the sharding of an array, or of what stands for one, over a mesh."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    return sharding


def follow(
    param: Any, axes: Sequence[int], batch_axes: Sequence[int], length: int
) -> NamedSharding | None:
    """Returns the sharding of the matrices that belong to a parameter.

    Batch axes are divided as the parameter's are. The other mesh axes over which the
    parameter is divided, those of contracted axes first, divide the rows, as many of
    them as do so evenly.

    Args:
      param: The parameter, an array or what stands for one.
      axes: Those that are contracted.
      batch_axes: Those that lead the matrices' axes.
      length: Of the matrices' last two axes.

    Returns:
      A sharding of ``[*batch, length, length]``; None if that of the parameter is not
      known, or is none of a mesh.
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


def divide(matrices: Any, batch: int, shape: Sequence[int]) -> NamedSharding | None:
    """Returns the sharding of what is made of matrices, such as blocks of them.

    Args:
      matrices: An array, or what stands for one, with `batch` leading axes.
      batch: How many leading axes both have.
      shape: Of what is made of them. The first of its other axes that can be divided
        as the matrices' rows are is.

    Returns:
      A sharding; None if that of the matrices is not known, or is none of a mesh.
    """
    sharding = of(matrices)
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
    """Returns an array that is not divided along some axes, where that can be told."""
    sharding = jax.typeof(x).sharding
    if not is_explicit(sharding.mesh):
        return x
    spec = [None if i in axes else part for i, part in enumerate(sharding.spec)]
    if PartitionSpec(*spec) == sharding.spec:
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec))


def known(x: jax.Array, sharding: NamedSharding | None) -> NamedSharding | None:
    """Returns how an array is divided, where that can be told.

    Args:
      x: The array.
      sharding: What it is outside of the program, where that is known.

    Returns:
      What its type says in an Explicit mesh, and else `sharding`; None where nothing is
      known, where there is one device only, and where the program itself divides.
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
) -> NamedSharding:
    """Returns the sharding of an array that is whole along some axes.

    What these were divided over divides another axis, where it does so evenly.

    Args:
      sharding: Of the array, for each of its axes.
      shape: Of the array.
      axes: Axes along which it is to be whole.
      kept: Axes along which it stays as it is.
    """
    spec: list[Any] = list(sharding.spec)
    moved = _names(spec[axis] for axis in axes)
    for axis in axes:
        spec[axis] = None
    for axis in range(len(shape)):
        names = (*_names([spec[axis]]), *moved)
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        if axis not in (*axes, *kept) and moved and shape[axis] % parts == 0:
            spec[axis], moved = names, []
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def along(sharding: NamedSharding, axes: Sequence[int], rank: int) -> NamedSharding:
    """Returns the sharding of an array whose first axes are some of another's.

    Args:
      sharding: Of the other.
      axes: Of the other.
      rank: How many axes the array has. Along the rest it is whole.
    """
    spec = [sharding.spec[axis] for axis in axes]
    return NamedSharding(sharding.mesh, _padded(spec, rank))


def _padded(spec: Sequence[Any], rank: int) -> PartitionSpec:
    return PartitionSpec(*spec, *[None] * (rank - len(spec)))


def replicated(x: jax.Array) -> Any:
    """Returns the sharding of a result that is on all devices, where it must be told.

    Args:
      x: An operand of what makes the result.
    """
    return PartitionSpec() if is_explicit(jax.typeof(x).sharding.mesh) else None
