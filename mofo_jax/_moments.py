"""Moments and step counts, found anywhere in the state of an optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax._options.path_rules import named_leaves, place


class Moment(NamedTuple):
    """A kind of array that an optimizer's state holds for each leaf.

    Attributes:
      names: Optax's names of the trees that hold it.
      title: What it is called in errors.
      plural: The plural of the title.
      advice: Where it is kept and what else to do, for errors.
    """

    names: tuple[str, ...]
    title: str
    plural: str
    advice: str


MOMENTUM = Moment(
    # Those of most optimizers, of `optax.trace`, and of Adan.
    ("mu", "trace", "m"),
    "momentum",
    "momenta",
    "as in optax.adam, optax.lion and optax.sgd with `momentum`. Otherwise choose a "
    '`score` that needs none, such as "update", or make the tensor `dense`',
)
SECOND_MOMENT = Moment(
    ("nu",),
    "second moment",
    "second moments",
    "as in optax.adam. Otherwise choose a `score` that needs none",
)
FISHER = Moment(
    ("fisher",),
    "Fisher information",
    "kinds of Fisher information",
    "as in an optax.chain with mofo_jax.baselines.keep_fisher",
)
# States of Optax without moments, whose `count` is reset and thus no step count.
RESET = ("ApplyEvery", "ReduceLROnPlateauState")


class Moments:
    """The moments that an optimizer's state holds for each leaf of the updates.

    Args:
      state: The state after the update, of any Optax transformation, however nested.
      updates: The tree of updates.
    """

    def __init__(self, state: optax.OptState, updates: optax.Updates) -> None:
        self._state, self._updates = state, updates
        self._found: dict[Moment, list[list[jax.Array]]] = {}

    def find(self, moment: Moment, index: int) -> jax.Array:
        """Returns the moment of one leaf.

        Raises:
          ValueError: If the state holds none, or two, for it.
        """
        if moment not in self._found:
            self._found[moment] = _by_leaf(self._state, moment.names, self._updates)
        found = self._found[moment][index]
        if len(found) == 1:
            return found[0]
        path, _ = named_leaves(self._updates)[index]
        parameter = place(path)
        if found:
            raise ValueError(
                f"`score` finds two {moment.plural} for {parameter} in the state of "
                f"`inner`: wrap only the transformation whose {moment.title} the score "
                "should use"
            )
        raise ValueError(
            f"`score` finds no {moment.title} for {parameter} in the state of `inner`, "
            f"which must hold a tree named {' or '.join(moment.names)}, {moment.advice}"
        )

    @functools.cached_property
    def count(self) -> jax.Array:
        """The number of updates, including the current one.

        Raises:
          ValueError: If the state holds no step count.
        """
        return step_count(self._state, "`score` depends on the step")


def _by_leaf(
    state: optax.OptState, names: tuple[str, ...], updates: optax.Updates
) -> list[list[jax.Array]]:
    """Returns the arrays that the named fields hold for each leaf of the updates."""
    found: list[list[jax.Array]] = [[] for _ in jax.tree.leaves(updates)]
    for tree in _fields(state, names):
        for held, leaf in zip(found, _aligned(tree, updates), strict=True):
            if leaf is not None:
                held.append(leaf)
    return found


def step_count(state: optax.OptState, why: str) -> jax.Array:
    """Returns the number of updates that the state of an optimizer has counted.

    Args:
      state: The state.
      why: The reason why the count is needed, for the error.

    Raises:
      ValueError: If the state holds no step count.
    """
    counts = [
        count
        for count in _fields(state, ("count", "t"))
        if jnp.ndim(count) == 0 and jnp.issubdtype(jnp.result_type(count), jnp.integer)
    ]
    if not counts:
        raise ValueError(
            f"{why}, but the state of `inner` keeps no `count`: chain `inner` with a "
            "transformation that counts, such as optax.scale_by_schedule, or choose an "
            "option that does not depend on the step"
        )
    return counts[0]


def _fields(state: optax.OptState, names: tuple[str, ...]) -> list[Any]:
    """Returns the values of the named fields of the states nested in `state`."""
    return [
        value
        for name in names
        for path, value in optax.tree.get_all_with_path(state, name)
        if isinstance(path[-1], optax.tree_utils.NamedTupleKey)
        and path[-1].tuple_name not in RESET
    ]


def _aligned(tree: Any, updates: optax.Updates) -> list[jax.Array | None]:
    """Returns the leaf of `tree` for each leaf of `updates`, None where it has none.

    Under `optax.partition` and `optax.masked`, the momentum of a group has placeholders
    for the leaves of other groups. A tree of another structure, or of other shapes, is
    not a momentum: a parameter may be named `mu` too.
    """
    aligned: list[jax.Array | None] = []

    def extend(leaf: Any, below: Any) -> None:
        hole = isinstance(leaf, optax.MaskedNode)
        if not hole and not jax.tree_util.all_leaves([below]):
            raise ValueError("a leaf of the tree lies above a tree of updates")
        if not hole and jnp.shape(leaf) != jnp.shape(below):
            raise ValueError("a leaf of the tree has another shape than the update")
        aligned.extend([None if hole else leaf] * len(jax.tree.leaves(below)))

    try:
        jax.tree.map(
            extend, tree, updates, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )
    except (ValueError, TypeError):
        return [None] * len(jax.tree.leaves(updates))
    return aligned
