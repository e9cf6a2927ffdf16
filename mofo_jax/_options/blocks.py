"""Which axes of a tensor index separate blocks: the option `block_axes`."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mofo_jax._options import path_rules
from mofo_jax._options.path_rules import path_name, place


class AxisParts(NamedTuple):
    """An entry of `block_axes`: an axis cut into equal runs, each of them a block.

    The heads of a kernel that keeps heads and their coordinates in one axis.

    Attributes:
      axis: The axis.
      parts: Into how many runs of consecutive indices it is cut, at least 1.

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


class Blocks(NamedTuple):
    """Which coordinates of one tensor compete with one another.

    Attributes:
      axes: The axes that index separate blocks, ascending.
      shape: The shape in which the tensor has those axes.
      name: Tensors with the same name share their blocks; "" shares none.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    name: str = ""


def is_axes(value: Any) -> bool:
    """Returns whether `value` is a tuple of axis numbers."""
    return type(value) is tuple and all(map(_is_integer, value))


def is_blocks(value: Any) -> bool:
    """Returns whether `value` is one value of the option `block_axes`.

    A tuple of axis numbers and of `AxisParts`, with at most one name; or a name alone.
    """
    if isinstance(value, str):
        return bool(value)
    return (
        type(value) is tuple
        and all(
            _is_integer(entry) or isinstance(entry, str) or _is_cut(entry)
            for entry in value
        )
        and sum(isinstance(entry, str) for entry in value) <= 1
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_cut(value: Any) -> bool:
    return isinstance(value, AxisParts) and is_axes(tuple(value)) and value.parts > 0


def find_blocks(value: Any, shape: tuple[int, ...], path: str) -> Blocks:
    """Returns what one value of `block_axes` means for a tensor.

    Raises:
      ValueError: If an axis is out of range, named twice, or not divisible.
    """
    entries = (value,) if isinstance(value, str) else value
    name = "".join(entry for entry in entries if isinstance(entry, str))
    parts = {}
    for entry in entries:
        if not isinstance(entry, str):
            axis, number = entry if isinstance(entry, AxisParts) else (entry, 0)
            (axis,) = normalize_axes((axis,), len(shape), path)
            if axis in parts:
                raise ValueError(
                    f"`block_axes` for {place(path)} must name an axis once, "
                    f"got {value}"
                )
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
                    f"`block_axes` for {place(path)} must cut axis {axis}, of "
                    f"length {length}, into equal parts, got {number} parts"
                )
            cut.extend((number, length // number))
        else:
            cut.append(length)
    return Blocks(tuple(axes), tuple(cut), name)


def check_axes(block_axes: Any) -> None:
    """Raises ValueError for block axes that are wrong whatever the tree."""
    for value in path_rules.given_values(_axes_option(block_axes), is_axes):
        if not is_axes(value):
            raise ValueError(
                f"`block_axes` must be a tuple of axis numbers, got {value!r}"
            )


def resolve_axes(block_axes: Any, updates: optax.Updates) -> Any:
    """Returns a tree with the block axes of each leaf of another, ascending."""
    values = path_rules.resolve(
        _axes_option(block_axes),
        "block_axes",
        updates,
        is_axes,
        "a tuple of axis numbers",
    )
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    return jax.tree.structure(updates).unflatten(
        normalize_axes(value, np.ndim(leaf), path_name(path))
        for value, (path, leaf) in zip(values, leaves, strict=True)
    )


def inner_axes(ndim: int, block_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes along which a block extends."""
    return tuple(axis for axis in range(ndim) if axis not in block_axes)


def _axes_option(block_axes: Any) -> Any:
    return () if block_axes is None else block_axes


def normalize_axes(axes: tuple[int, ...], ndim: int, name: str) -> tuple[int, ...]:
    """Returns axes as ascending numbers from 0.

    Raises:
      TypeError: If the axes are not a tuple of integers.
      ValueError: If an axis is out of range or named twice.
    """
    if not is_axes(axes):
        raise TypeError(f"`block_axes` must be a tuple of axis numbers, got {axes!r}")
    if any(not -ndim <= axis < ndim for axis in axes):
        raise ValueError(
            f"`block_axes` for {place(name)} must be axes of a tensor with "
            f"{ndim} dimensions, got {axes}"
        )
    positive = sorted(axis % ndim for axis in axes)
    if len(set(positive)) != len(positive):
        raise ValueError(
            f"`block_axes` for {place(name)} must name an axis once, got {axes}"
        )
    return tuple(positive)
