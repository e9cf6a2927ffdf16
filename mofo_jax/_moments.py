"""Moments and counts, found wherever an optimizer's state keeps them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mofo_jax._options.path_rules import path_name, place

# Optax's names: of most optimizers, of SGD's trace, and of Adan.
_MOMENTUM = ("mu", "trace", "m")
_SECOND_MOMENT = ("nu",)
_FISHER = ("fisher",)


class Moments:
    """What an optimizer's state keeps for each leaf of the updates.

    Args:
      state: The state after the update; any state of Optax's transformations, nested as
        it may be.
      updates: The tree of updates.
    """

    def __init__(self, state: optax.OptState, updates: optax.Updates) -> None:
        self._state, self._updates = state, updates
        self._found: dict[tuple[str, ...], list[list[jax.Array]]] = {}

    def momentum(self, index: int) -> jax.Array:
        """Returns the momentum of one leaf.

        Raises:
          ValueError: If the state keeps no momentum, or two, for it.
        """
        return self._one(
            _MOMENTUM,
            index,
            ("momentum", "momenta"),
            "as optax.adam, optax.lion and optax.sgd with `momentum` do, or "
            '`score` be one that needs none, as "update", or the tensor be `dense`',
        )

    def second_moment(self, index: int) -> jax.Array:
        """Returns the second moment of one leaf, or raises ValueError."""
        return self._one(
            _SECOND_MOMENT,
            index,
            ("second moment", "second moments"),
            "as optax.adam does, or `score` be one that needs none",
        )

    def fisher(self, index: int) -> jax.Array:
        """Returns the Fisher information of one leaf, or raises ValueError."""
        return self._one(
            _FISHER,
            index,
            ("Fisher information", "kinds of Fisher information"),
            "as mofo_jax.baselines.keep_fisher in an optax.chain does",
        )

    def count(self) -> jax.Array:
        """Returns how many updates there have been, with this one.

        Raises:
          ValueError: If the state does not keep a count.
        """
        return step_count(self._state, "`score` depends on the step")

    def _one(
        self, names: tuple[str, ...], index: int, what: tuple[str, str], advice: str
    ) -> jax.Array:
        """Returns the leaf that one of the fields holds for one leaf of the updates."""
        if names not in self._found:
            self._found[names] = _by_leaf(self._state, names, self._updates)
        found = self._found[names][index]
        if len(found) == 1:
            return found[0]
        path, _ = jax.tree_util.tree_leaves_with_path(self._updates)[index]
        parameter = place(path_name(path))
        if found:
            raise ValueError(
                f"`score` finds two {what[1]} for {parameter} in the state of `inner`: "
                "filter the one transformation whose own is to be ranked"
            )
        raise ValueError(
            f"`score` finds no {what[0]} for {parameter} in the state of `inner`: it "
            f"must keep a tree named {' or '.join(names)}, {advice}"
        )


def _by_leaf(
    state: optax.OptState, names: tuple[str, ...], updates: optax.Updates
) -> list[list[jax.Array]]:
    """Returns for each leaf of the updates what the named fields hold for it."""
    found: list[list[jax.Array]] = [[] for _ in jax.tree.leaves(updates)]
    for tree in _fields(state, names):
        for held, leaf in zip(found, _aligned(tree, updates), strict=True):
            if leaf is not None:
                held.append(leaf)
    return found


def step_count(state: optax.OptState, why: str) -> jax.Array:
    """Returns how many updates an optimizer's state has seen.

    Args:
      state: The state.
      why: What needs it, for the error.

    Raises:
      ValueError: If the state does not keep a count.
    """
    counts = [count for count in _fields(state, ("count", "t")) if jnp.ndim(count) == 0]
    if not counts:
        raise ValueError(
            f"{why}, and the state of `inner` keeps no `count`: chain it with "
            "optax.scale_by_schedule, or choose what does not depend on the step"
        )
    return counts[0]


def _fields(state: optax.OptState, names: tuple[str, ...]) -> list[Any]:
    """Returns the values of the named fields of the states nested in `state`."""
    return [
        value
        for name in names
        for path, value in optax.tree.get_all_with_path(state, name)
        if isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    ]


def _aligned(tree: Any, updates: optax.Updates) -> list[jax.Array | None]:
    """Returns the leaf of `tree` for each leaf of `updates`, None where it has none.

    Under `optax.partition` and `optax.masked` a group's momentum has a placeholder for
    what belongs to others. A tree of another structure is no momentum: a parameter,
    too, may be called `mu`.
    """
    aligned: list[jax.Array | None] = []

    def extend(leaf: Any, below: optax.Updates) -> None:
        hole = isinstance(leaf, optax.MaskedNode)
        if not hole and not jax.tree_util.all_leaves([below]):
            raise ValueError("a leaf of the tree lies above a tree of updates")
        aligned.extend([None if hole else leaf] * len(jax.tree.leaves(below)))

    try:
        jax.tree.map(
            extend, tree, updates, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )
    except (ValueError, TypeError):
        return [None] * len(jax.tree.leaves(updates))
    return aligned
