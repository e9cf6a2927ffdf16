"""Options that may differ from tensor to tensor, chosen by the path of a parameter.

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

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Path = tuple[Any, ...]


def check_expression(name: str, expression: str) -> None:
    """Raises ValueError if an argument's regular expression is malformed."""
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"`{name}` must be a regular expression, got {expression!r}: {error}"
        ) from error


@dataclasses.dataclass(frozen=True, init=False)
class PathRules(Generic[T_co]):
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
        """Returns the option's value for the parameter at `path`, `...` for none."""
        for expression, value in self.rules:
            if re.search(expression, path):
                return value
        return self.default


# How an option that may differ from tensor to tensor is given: one value for all, rules
# by path, a callable from the tree of updates to a pytree prefix, or such a prefix. A
# prefix may be any pytree; the type names those that are most common.
PerTensor = Union[  # noqa: UP007 (`|` cannot name the alias itself.)
    T,
    PathRules[T],
    Callable[[Any], Any],
    Mapping[str, "PerTensor[T]"],
    Sequence["PerTensor[T]"],
]

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


def place(path: str) -> str:
    """Returns how an error names the parameter at `path`."""
    return path or "the tensor"


@dataclasses.dataclass(frozen=True)
class Kind(Generic[T]):
    """What an option's values are.

    Attributes:
      name: The option's name, for errors.
      is_value: Whether something is one value of the option rather than a tree of them.
      allowed: What a value must be, for errors.
    """

    name: str
    is_value: Callable[[Any], bool]
    allowed: str

    def check(self, option: PerTensor[T]) -> list[T]:
        """Checks the values that can be told without a tree of updates.

        Returns:
          These values.

        Raises:
          ValueError: If one of them is wrong whatever the tree.
        """
        if isinstance(option, PathRules):
            values = [value for _, value in option.rules]
            if option.default is not ...:
                values.append(option.default)
        elif callable(option) and not self.is_value(option):
            values = []
        else:
            values = jax.tree.leaves(option, is_leaf=self.is_value)
        for value in values:
            if not self.is_value(value):
                raise ValueError(f"`{self.name}` must be {self.allowed}, got {value!r}")
        return values

    def resolve(self, option: PerTensor[T], updates: optax.Updates) -> list[T]:
        """Returns the option's value for each leaf of `updates`, in the tree's order.

        Raises:
          ValueError: If a prefix does not fit the tree, or a value is wrong or missing.
        """
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        paths = [path_name(path) for path, _ in leaves]
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
            if callable(option) and not self.is_value(option):
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
