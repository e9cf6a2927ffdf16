"""Options that differ from tensor to tensor: which coordinates compete, and where.

An option is given once for all tensors, as a pytree prefix of the parameters, by rules
on parameter paths, or as a callable on the tree. It is resolved inside `update`, from
the tree of updates alone: Flax NNX gives `init` a tree of another structure.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, init=False)
class PathRules:
    r"""An option chosen by the path of each parameter; the first match wins.

    Paths are joined by slashes, as in `layers/0/attention/query/kernel`; the `.value`
    that Flax appends to a boxed parameter is left out. Unlike a callable, rules pass
    through `optax.inject_hyperparams` untouched.

    Args:
      rules: Maps regular expressions, searched for in the path, to values of the
        option.
      default: The value for parameters that no rule matches. Without one, such a
        parameter is an error that names it.

    Raises:
      ValueError: If a regular expression is malformed.

    Examples:
      >>> import mofo_jax
      >>> per_layer = mofo_jax.PathRules({r"^layers/": (0,)}, default=())
      >>> per_layer
      PathRules({'^layers/': (0,)}, default=())

    Source: ours; the first match wins as in MaxText's and big_vision's rules.
    """

    rules: tuple[tuple[str, Any], ...]
    default: Any

    def __init__(self, rules: Mapping[str, Any], *, default: Any = ...) -> None:
        for expression in rules:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(
                    f"`rules` must be regular expressions, got {expression!r}: {error}"
                ) from error
        object.__setattr__(self, "rules", tuple(rules.items()))
        object.__setattr__(self, "default", default)

    def __repr__(self) -> str:
        default = "" if self.default is ... else f", default={self.default!r}"
        return f"PathRules({dict(self.rules)!r}{default})"

    def value_at(self, path: str) -> Any:
        """Returns the option's value for the parameter at `path`, `...` for none."""
        for expression, value in self.rules:
            if re.search(expression, path):
                return value
        return self.default


NORMS_AND_BIASES = PathRules({r"(?i)norm|bias|(^|/)scale$": True}, default=False)
"""`dense=NORMS_AND_BIASES` leaves normalisation scales and biases to plain Adam.

The authors' code filters neither: it looks for "norm" and "bias" in PyTorch's names.
Flax calls a normalisation's weight `scale`, whatever the module's name.
"""


def path_name(path: Path) -> str:
    """Returns a parameter's path as text, the same under Linen, NNX and Equinox."""
    # NNX variables and Linen boxes are nodes with one attribute, `value`.
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def given_values(option: Any, is_value: Callable[[Any], bool]) -> list[Any]:
    """Returns the values of an option that can be told without a tree of updates."""
    if isinstance(option, PathRules):
        values = [value for _, value in option.rules]
        return values if option.default is ... else [*values, option.default]
    if callable(option) and not is_value(option):
        return []
    return jax.tree.leaves(option, is_leaf=is_value)


def place(path: str) -> str:
    """Returns how an error names the parameter at `path`."""
    return path or "the tensor"


def resolve(
    option: Any,
    name: str,
    updates: optax.Updates,
    is_value: Callable[[Any], bool],
    allowed: str,
) -> list[Any]:
    """Returns an option's value for each leaf of `updates`, in the tree's order.

    Args:
      option: A value, a pytree prefix of values, `PathRules`, or a callable that takes
        the tree and returns a pytree prefix of values.
      name: The option's name, for errors.
      updates: The tree of updates.
      is_value: Whether something is one value of the option rather than a tree of them.
      allowed: What a value must be, for errors.

    Returns:
      A list, one value a leaf.

    Raises:
      ValueError: If the prefix does not fit the tree, or a rule's value or a path does
        not.
    """
    paths = [
        path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)
    ]
    if isinstance(option, PathRules):
        values = [option.value_at(path) for path in paths]
        missed = [
            path for path, value in zip(paths, values, strict=True) if value is ...
        ]
        if missed:
            raise ValueError(
                f"`{name}` has no default and no rule for "
                f"{', '.join(map(place, missed))}"
            )
    else:
        if not is_value(option) and callable(option):
            option = option(updates)
        values = _broadcast(option, name, updates, is_value)
    for path, value in zip(paths, values, strict=True):
        if not is_value(value):
            raise ValueError(
                f"`{name}` for {place(path)} must be {allowed}, got {value!r}"
            )
    return values


def _broadcast(
    prefix: Any, name: str, updates: optax.Updates, is_value: Callable[[Any], bool]
) -> list[Any]:
    """Gives every leaf of `updates` the value of the prefix tree above it."""
    values: list[Any] = []

    def extend(value: Any, below: optax.Updates) -> None:
        values.extend([value] * len(jax.tree.leaves(below)))

    try:
        jax.tree.map(extend, prefix, updates, is_leaf=is_value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{name}` must be a pytree prefix of the parameters, got {prefix!r}: "
            f"{error}"
        ) from error
    return values


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
                    f"`block_axes` for {place(path)} must cut axis {axis}, of length "
                    f"{length}, into equal parts, got {number} parts"
                )
            cut.extend((number, length // number))
        else:
            cut.append(length)
    return Blocks(tuple(axes), tuple(cut), name)


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
            f"`block_axes` for {place(name)} must be axes of a tensor with {ndim} "
            f"dimensions, got {axes}"
        )
    positive = sorted(axis % ndim for axis in axes)
    if len(set(positive)) != len(positive):
        raise ValueError(
            f"`block_axes` for {place(name)} must name an axis once, got {axes}"
        )
    return tuple(positive)
