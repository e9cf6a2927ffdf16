"""The filter's options, resolved for each tensor of a tree of updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mofo_jax import _checks
from mofo_jax._options.blocks import BLOCK_AXES, BlockAxes, Blocks, resolve_blocks
from mofo_jax._options.path_rules import Kind, PerTensor, named_leaves

# A fraction is a number, static or traced, or a schedule of the step count.
Fraction = jax.typing.ArrayLike | Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
AxisName = str | tuple[str, ...]


class Options(NamedTuple):
    """The options that may differ between tensors, as the user gave them."""

    update_fraction: PerTensor[Fraction]
    block_axes: PerTensor[BlockAxes] | None
    dense: PerTensor[bool] | None
    axis_name: PerTensor[AxisName] | None

    def check(self) -> None:
        """Raises ValueError if a value is invalid for every tree."""
        for fraction in _FRACTION.check(self.update_fraction):
            _checks.check_schedule("update_fraction", fraction, "(0, 1]")
        BLOCK_AXES.check(self.block_axes)
        _DENSE.check(self.dense)
        _AXIS_NAME.check(self.axis_name)


class Filtered(NamedTuple):
    """A tensor that is filtered, with its options.

    Attributes:
      number: Its position among the leaves of the updates.
      path: Its path.
      fraction: The share of each block that moves, a number or a schedule.
      blocks: The division of its coordinates into blocks.
      axis_name: The mesh axes of `shard_map` that divide its blocks.
      spec: The Explicit mesh axes that divide its block axes.
    """

    number: int
    path: str
    fraction: Fraction
    blocks: Blocks
    axis_name: tuple[str, ...]
    spec: tuple[Any, ...]


def find_filtered(options: Options, updates: optax.Updates) -> list[list[Filtered]]:
    """Returns the tensors to filter, in groups that share their blocks.

    Dense tensors, those with a static fraction of 1, and empty ones are left out.

    Raises:
      ValueError: If an option does not fit the tree, or tensors cannot share blocks.
    """
    fractions = _FRACTION.resolve(options.update_fraction, updates)
    divided = resolve_blocks(options.block_axes, updates)
    dense = _DENSE.resolve(options.dense, updates)
    names = _AXIS_NAME.resolve(options.axis_name, updates)
    found: dict[str | int, list[Filtered]] = {}
    for i, (path, leaf) in enumerate(named_leaves(updates)):
        fraction, blocks, axis_name = fractions[i], divided[i], names[i]
        _checks.check_schedule("update_fraction", fraction, "(0, 1]", path)
        everything = _checks.is_exactly(fraction, 1)
        if dense[i] or everything or jnp.size(leaf) == 0:
            continue
        axis_name = (axis_name,) if isinstance(axis_name, str) else axis_name
        spec = jax.typeof(leaf).sharding.spec
        whole = blocks.shape == jnp.shape(leaf)  # without `AxisParts`
        along = tuple(spec[axis] for axis in blocks.axes) if whole else ()
        tensor = Filtered(i, path, fraction, blocks, axis_name, along)
        sharing = found.setdefault(blocks.name or i, [])
        if sharing:
            _check_shared(sharing[0], tensor)
        sharing.append(tensor)
    return list(found.values())


def _check_shared(first: Filtered, other: Filtered) -> None:
    """Raises ValueError unless two tensors can share their blocks."""
    same_fraction = first.fraction is other.fraction or (
        _checks.is_static_number(first.fraction)
        and _checks.is_static_number(other.fraction)
        and first.fraction == other.fraction
    )
    lengths, other_lengths = (
        tuple(blocks.shape[axis] for axis in blocks.axes)
        for blocks in (first.blocks, other.blocks)
    )
    for what, same, values in (
        ("`update_fraction`", same_fraction, (first.fraction, other.fraction)),
        (
            "lengths of `block_axes`",
            lengths == other_lengths,
            (lengths, other_lengths),
        ),
        (
            "`axis_name`",
            first.axis_name == other.axis_name,
            (first.axis_name, other.axis_name),
        ),
        (
            "Explicit sharding of `block_axes`",
            first.spec == other.spec,
            (first.spec, other.spec),
        ),
    ):
        if not same:
            raise ValueError(
                f"the tensors of the block {first.blocks.name!r} must have the same "
                f"{what}, got {values[0]!r} and {values[1]!r}"
            )


def _is_fraction(value: Any) -> bool:
    return _checks.is_scalar(value) or _checks.is_function(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_axis_name(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    )


_FRACTION: Kind[Fraction] = Kind(
    "update_fraction", _is_fraction, "a number in (0, 1] or a schedule"
)
_DENSE: Kind[bool] = Kind("dense", _is_bool, "True or False", default=False)
_AXIS_NAME: Kind[AxisName] = Kind(
    "axis_name", _is_axis_name, "a name or a tuple of names", default=()
)
