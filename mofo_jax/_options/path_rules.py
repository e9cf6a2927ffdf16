"""Options that may differ between tensors, chosen by the path of a parameter.

An option is given once for all tensors, as a pytree prefix of the parameters, by rules
on parameter paths, or as a callable on the tree. It is resolved inside `update`, from
the tree of updates alone: Flax NNX gives `init` a tree of another structure.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, Generic, TypeVar, Union

import jax
import optax

from mofo_jax import _checks

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Path = tuple[Any, ...]


def check_expression(name: str, expression: str) -> None:
    """Raises ValueError if an argument's regular expression is malformed."""
    try:
        re.compile(expression)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`{name}` must be a regular expression, got {expression!r}: {error}"
        ) from error


@dataclasses.dataclass(frozen=True, init=False)
class PathRules(Generic[T_co]):
    r"""An option chosen by the path of each parameter; the first match wins.

    The keys of a path are joined by slashes, as in `layers/0/attention/query/kernel`;
    the `.value` that Flax appends to a boxed parameter is left out. Unlike a callable,
    rules pass through `optax.inject_hyperparams` unchanged.

    Args:
      rules: Maps regular expressions, searched for in the path, to values of the
        option.
      default: The value for parameters that no rule matches. Without a default, such
        parameters raise an error that lists them.

    Raises:
      ValueError: If a regular expression is malformed.

    Examples:
      >>> import mofo_jax
      >>> per_layer = mofo_jax.PathRules({r"^layers/": (0,)}, default=())
      >>> per_layer
      PathRules({'^layers/': (0,)}, default=())

    Source: ours; the first match wins as in MaxText's and big_vision's rules.
    """

    rules: tuple[tuple[str, T_co], ...]
    default: T_co | EllipsisType

    def __init__(
        self, rules: Mapping[str, T_co], *, default: T_co | EllipsisType = ...
    ) -> None:
        for expression in rules:
            check_expression("rules", expression)
        object.__setattr__(self, "rules", tuple(rules.items()))
        object.__setattr__(self, "default", default)

    def __repr__(self) -> str:
        default = "" if self.default is ... else f", default={self.default!r}"
        return f"PathRules({dict(self.rules)!r}{default})"

    def value_at(self, path: str) -> Any:
        """Returns the value for the parameter at `path`, or `...` if there is none."""
        for expression, value in self.rules:
            if re.search(expression, path):
                return value
        return self.default


# The forms of an option that may differ between tensors: one value for all, rules by
# path, a callable from the tree of updates to a pytree prefix, or such a prefix. A
# prefix may be any pytree; the type lists the most common ones.
PerTensor = Union[  # noqa: UP007 (`|` cannot name the alias itself.)
    T,
    PathRules[T],
    Callable[[Any], Any],
    Mapping[str, "PerTensor[T]"],
    Sequence["PerTensor[T]"],
]

NORMS_AND_BIASES = PathRules({r"(?i)norm|bias|(^|/)scale$": True}, default=False)
"""`dense=NORMS_AND_BIASES` gives normalization scales and biases plain Adam updates.

The authors' code filters neither: it looks for "norm" and "bias" in PyTorch's names.
Flax names the weight of a normalization `scale`, whatever the module's name.
"""


def named_leaves(
    tree: Any, is_leaf: Callable[[Any], bool] = lambda node: False
) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree in its order, with their paths as text.

    Paths are the same under Linen, NNX and Equinox.

    Args:
      tree: The tree.
      is_leaf: As for `jax.tree.leaves`.
    """

    def stops(node: Any) -> bool:
        return _is_nothing(node) or is_leaf(node)

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=stops)
    # The keys below each node, also those of parameters that another transformation
    # masks.
    keys: dict[Path, set[Any]] = {}
    for path, _ in leaves:
        for end, key in enumerate(path):
            keys.setdefault(path[:end], set()).add(key)
    return [
        (path_name(path, boxed=len(keys.get(path[:-1], ())) == 1), leaf)
        for path, leaf in leaves
        if is_leaf(leaf) or not _is_nothing(leaf)
    ]


def path_name(path: Path, *, boxed: bool = True) -> str:
    """Returns a path as text, without the attribute `value` of a box at its end.

    Args:
      path: The path.
      boxed: Whether its last node has no other attribute, as NNX variables and Linen
        boxes.
    """
    if boxed and path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_nothing(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def place(path: str) -> str:
    """Returns the name of the parameter at `path` for an error message."""
    return path or "the tensor"


@dataclasses.dataclass(frozen=True)
class Kind(Generic[T]):
    """An option that may differ between tensors, and the values that it takes.

    Attributes:
      name: The option's name, for errors.
      is_value: Returns whether an object is one value rather than a tree of values.
      allowed: A description of the allowed values, for errors.
      default: The value that None stands for; None if it stands for none.
    """

    name: str
    is_value: Callable[[Any], bool]
    allowed: str
    default: T | None = None

    def check(self, option: PerTensor[T] | None) -> list[T]:
        """Checks the values that are known without a tree of updates.

        Returns:
          These values.

        Raises:
          ValueError: If one of them is invalid for every tree.
        """
        option = self.default if option is None else option
        if isinstance(option, PathRules):
            values = [value for _, value in option.rules]
            if option.default is not ...:
                values.append(option.default)
        elif _checks.is_function(option) and not self.is_value(option):
            values = []
        elif option is None:
            values = [None]  # An empty tree to JAX, but no value for any leaf.
        else:
            values = jax.tree.leaves(option, is_leaf=self.is_value)
        for value in values:
            if not self.is_value(value):
                raise ValueError(f"`{self.name}` must be {self.allowed}, got {value!r}")
        return values

    def resolve(self, option: PerTensor[T] | None, updates: optax.Updates) -> list[T]:
        """Returns the option's value for each leaf of `updates`, in the tree's order.

        Raises:
          ValueError: If a prefix does not fit the tree, or a value is wrong or missing.
        """
        option = self.default if option is None else option
        paths = [path for path, _ in named_leaves(updates)]
        if isinstance(option, PathRules):
            values: list[Any] = [option.value_at(path) for path in paths]
            pairs = zip(paths, values, strict=True)
            missed = [place(path) for path, value in pairs if value is ...]
            if missed:
                raise ValueError(
                    f"`{self.name}` has no default and no rule for {', '.join(missed)}"
                )
        else:
            prefix: Any = option
            if _checks.is_function(option) and not self.is_value(option):
                prefix = option(updates)
            values = self._broadcast(prefix, updates)
        for path, value in zip(paths, values, strict=True):
            if not self.is_value(value):
                raise ValueError(
                    f"`{self.name}` for {place(path)} must be {self.allowed}, got "
                    f"{value!r}"
                )
        return values

    def _broadcast(self, prefix: Any, updates: optax.Updates) -> list[Any]:
        """Gives every leaf of `updates` the value of the prefix tree above it."""
        values: list[Any] = []

        def extend(value: Any, below: optax.Updates) -> None:
            values.extend([value] * len(jax.tree.leaves(below)))

        try:
            jax.tree.map(extend, prefix, updates, is_leaf=self.is_value)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`{self.name}` must be a pytree prefix of the parameters, got "
                f"{prefix!r}: {error}"
            ) from error
        return values
