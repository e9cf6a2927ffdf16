"""Options that differ from tensor to tensor: which coordinates compete, and where.

An option is given once for all tensors, as a pytree prefix of the parameters, by rules
on parameter paths, or as a callable on the tree. It is resolved inside `update`, from
the tree of updates alone: Flax NNX gives `init` a tree of another structure.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
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
