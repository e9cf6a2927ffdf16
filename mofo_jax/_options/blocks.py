"""Which coordinates compete with one another: the option `block_axes`."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mofo_jax import _checks
from mofo_jax._options.path_rules import Kind, PerTensor, named_leaves, place


class AxisParts(NamedTuple):
    """An entry of `block_axes` that splits an axis into equal runs, each a block.

    Such runs are, for example, the heads of a kernel that merges heads and head
    dimensions in one axis.

    Attributes:
      axis: The axis.
      parts: The number of runs of consecutive indices, at least 1.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> heads = (mofo_jax.AxisParts(axis=0, parts=2),)
      >>> optimizer = mofo_jax.mofo(0.1, update_fraction=0.5, block_axes=heads)
      >>> gradient = jnp.array([4., 3., 1., 2.])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0].round(1))
      [-0.1  0.   0.  -0.1]

    Source: ours, after Adam-mini's partition by heads (Zhang et al., 2024).
    """

    axis: int
    parts: int


# One value of `block_axes`.
BlockAxes = str | tuple[int | AxisParts | str, ...]


class Blocks(NamedTuple):
    """The division of one tensor's coordinates into blocks.

    Attributes:
      axes: The axes that index separate blocks, ascending.
      shape: The shape that the tensor is given so that it has these axes.
      name: Tensors with the same name share their blocks; "" means no sharing.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    name: str = ""

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes along which a block extends."""
        return inner_axes(len(self.shape), self.axes)


def resolve_blocks(
    block_axes: PerTensor[BlockAxes] | None, updates: optax.Updates
) -> list[Blocks]:
    """Returns the blocks of each leaf of `updates`, in the tree's order.

    Raises:
      ValueError: If a value is wrong or does not fit its tensor.
    """
    values = BLOCK_AXES.resolve(block_axes, updates)
    return [
        _find_blocks(value, leaf, path)
        for value, (path, leaf) in zip(values, named_leaves(updates), strict=True)
    ]


def resolve_own_blocks(
    block_axes: PerTensor[BlockAxes] | None, updates: optax.Updates, user: str
) -> list[Blocks]:
    """Returns the blocks of each leaf for a function that treats tensors separately.

    Args:
      block_axes: The option.
      updates: The tree of updates.
      user: The name of the function, for the error.

    Raises:
      ValueError: If a value is wrong, does not fit its tensor, or names blocks that
        tensors share.
    """
    found = resolve_blocks(block_axes, updates)
    for blocks, (path, _) in zip(found, named_leaves(updates), strict=True):
        if blocks.name:
            raise ValueError(
                f"`block_axes` for {place(path)} must not share the block "
                f"{blocks.name!r} with other tensors: `{user}` treats each tensor "
                "separately"
            )
    return found


def _is_value(value: Any) -> bool:
    """Returns whether `value` is one value of the option `block_axes`."""
    if isinstance(value, str):
        return bool(value)
    return (
        type(value) is tuple
        and all(
            _checks.is_integer(entry) or isinstance(entry, str) or _is_cut(entry)
            for entry in value
        )
        and sum(isinstance(entry, str) for entry in value) <= 1
    )


def _is_axes(value: Any) -> bool:
    return type(value) is tuple and all(map(_checks.is_integer, value))


def _is_cut(value: Any) -> bool:
    return isinstance(value, AxisParts) and _is_axes(tuple(value)) and value.parts > 0


BLOCK_AXES: Kind[BlockAxes] = Kind(
    "block_axes",
    _is_value,
    "a name, or a tuple of axis numbers and AxisParts with at most one name",
    default=(),
)


# Axes alone, of one tensor at a time.
AXES: Kind[BlockAxes] = Kind("axes", _is_axes, "a tuple of axis numbers", ())


def _find_blocks(value: BlockAxes, leaf: Any, path: str) -> Blocks:
    """Returns the blocks that one value of `block_axes` gives a tensor."""
    shape = np.shape(leaf)
    entries = (value,) if isinstance(value, str) else value
    name = "".join(entry for entry in entries if isinstance(entry, str))
    # The number of parts of each listed axis; 0 if each of its indices is a block.
    parts: dict[int, int] = {}
    for entry in entries:
        if not isinstance(entry, str):
            axis, number = entry if isinstance(entry, AxisParts) else (entry, 0)
            (axis,) = normalize_axes((axis,), len(shape), path)
            if axis in parts:
                _refuse_repeated(path, value)
            parts[axis] = number
    axes: list[int] = []
    cut: list[int] = []
    for axis, length in enumerate(shape):
        number = parts.get(axis)
        if number is not None:
            axes.append(len(cut))
        if number:
            if length % number:
                raise ValueError(
                    f"`block_axes` for {place(path)} must split axis {axis}, of length "
                    f"{length}, into equal parts, got {number} parts"
                )
            _check_shards(leaf, axis, number, path)
            cut.extend((number, length // number))
        else:
            cut.append(length)
    return Blocks(tuple(axes), tuple(cut), name)


def _check_shards(leaf: Any, axis: int, parts: int, path: str) -> None:
    """Raises ValueError if a part would be divided between devices by Explicit axes."""
    if not isinstance(leaf, jax.Array):
        return
    sharding = jax.typeof(leaf).sharding  # with None for Auto axes
    names = sharding.spec[axis] or ()
    names = (names,) if isinstance(names, str) else names
    shards = math.prod(sharding.mesh.shape[name] for name in names)
    if parts % shards:
        raise ValueError(
            f"`block_axes` for {place(path)} must split axis {axis} into a multiple of "
            f"{shards} parts, since Explicit mesh axes {names} shard it, got {parts} "
            "parts; Auto axes have no such limit"
        )


def inner_axes(ndim: int, block_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes along which a block extends."""
    return tuple(axis for axis in range(ndim) if axis not in block_axes)


def normalize_axes(
    axes: tuple[int, ...], ndim: int, path: str, name: str = "block_axes"
) -> tuple[int, ...]:
    """Returns axes as non-negative numbers in ascending order.

    Args:
      axes: The axes.
      ndim: The number of axes of the tensor.
      path: The tensor's path, for errors.
      name: The argument's name, for errors.

    Raises:
      TypeError: If the axes are not a tuple of integers.
      ValueError: If an axis is out of range or listed twice.
    """
    if not _is_axes(axes):
        raise TypeError(f"`{name}` must be a tuple of axis numbers, got {axes!r}")
    if any(not -ndim <= axis < ndim for axis in axes):
        raise ValueError(
            f"`{name}` for {place(path)} must be axes of a tensor with {ndim} "
            f"dimensions, got {axes}"
        )
    positive = sorted(axis % ndim for axis in axes)
    if len(set(positive)) != len(positive):
        _refuse_repeated(path, axes, name)
    return tuple(positive)


def _refuse_repeated(path: str, value: BlockAxes, name: str = "block_axes") -> None:
    raise ValueError(
        f"`{name}` for {place(path)} must list each axis only once, got {value}"
    )
