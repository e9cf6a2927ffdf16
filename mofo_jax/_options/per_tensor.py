"""The options that may differ from tensor to tensor, and what they say for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mofo_jax import _checks, _moments
from mofo_jax._options import blocks, path_rules
from mofo_jax._options.path_rules import path_name


class Options(NamedTuple):
    """The options that may differ from tensor to tensor, as the user gave them."""

    update_fraction: Any
    block_axes: Any
    dense: Any
    axis_name: Any


def check_values(options: Options) -> None:
    """Raises ValueError for a wrong value that is wrong whatever the tree."""
    for name, option in options._asdict().items():
        is_value, allowed = _VALUES[name]
        for value in path_rules.given_values(option, is_value):
            if not is_value(value):
                raise ValueError(f"`{name}` must be {allowed}, got {value!r}")
            if name == "update_fraction":
                _checks.check_fraction(name, value)


class Settings(NamedTuple):
    """How one tensor is filtered.

    Attributes:
      number: Its place in the tree of updates.
      path: Its path.
      fraction: How much of each block moves.
      blocks: Which coordinates compete.
      axis_name: The mesh axes of `shard_map` over which it is sharded.
    """

    number: int
    path: str
    fraction: Any
    blocks: blocks.Blocks
    axis_name: tuple[str, ...]


def find_competing(
    options: Options, updates: optax.Updates, state: optax.OptState
) -> list[Settings]:
    """Returns how each of the leaves that are filtered is."""
    fractions, axes, dense, names = (
        path_rules.resolve(option, name, updates, *_VALUES[name])
        for name, option in options._asdict().items()
    )
    found = []
    shared: dict[str, Any] = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(updates)):
        fraction = fractions[i]
        name = path_name(path)
        _checks.check_fraction("update_fraction", fraction, name)
        everything = _checks.is_static_number(fraction) and fraction == 1
        if dense[i] or everything or jnp.size(leaf) == 0:
            continue
        divided = blocks.find_blocks(axes[i], jnp.shape(leaf), name)
        axis_name = (names[i],) if isinstance(names[i], str) else names[i]
        if divided.name:
            lengths = tuple(divided.shape[axis] for axis in divided.axes)
            common = fraction, lengths, axis_name
            _check_shared(divided.name, shared.setdefault(divided.name, common), common)
        if callable(fraction):
            why = "`update_fraction` is a schedule"
            fraction = fraction(_moments.step_count(state, why))
            _checks.check_fraction("update_fraction", fraction, name)
        found.append(Settings(i, name, fraction, divided, axis_name))
    return found


def _check_shared(name: str, first: tuple, other: tuple) -> None:
    """Raises ValueError unless two tensors can share their blocks."""
    wanted = "`update_fraction`", "lengths of `block_axes`", "`axis_name`"
    for what, mine, its in zip(wanted, first, other, strict=True):
        if mine is not its and not (
            isinstance(mine, (int, float, tuple)) and mine == its
        ):
            raise ValueError(
                f"the tensors of the block {name!r} must have the same {what}, got "
                f"{mine!r} and {its!r}"
            )


def _is_fraction(value: Any) -> bool:
    return _checks.is_scalar(value) or callable(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_axis_name(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    )


# What one value of each option is, and how an error says so.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "update_fraction": (_is_fraction, "a number in (0, 1] or a schedule"),
    "block_axes": (
        blocks.is_blocks,
        "a tuple of axis numbers and AxisParts, with a name or without",
    ),
    "dense": (_is_bool, "True or False"),
    "axis_name": (_is_axis_name, "a name or a tuple of names"),
}
