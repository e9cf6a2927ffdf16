"""What ranks the coordinates of an update."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _blocks

_MOMENTUM_FIELDS = ("mu", "trace")


def momentum(
    state: optax.OptState, updates: optax.Updates, ranked: Sequence[int]
) -> list[jax.Array]:
    """Finds the momentum that an optimizer's state keeps, wherever it sits.

    Args:
      state: Any state of Optax transformations, nested as it may be.
      updates: The tree of updates.
      ranked: The positions of the leaves whose momentum is asked for.

    Returns:
      The momentum of each of those leaves.

    Raises:
      ValueError: If the state keeps no momentum, or two, for one of them.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    found: list[list[jax.Array]] = [[] for _ in paths]
    for tree in _fields(state, _MOMENTUM_FIELDS):
        for i, leaf in enumerate(_aligned(tree, updates)):
            if leaf is not None:
                found[i].append(leaf)
    for i in ranked:
        place = _blocks.place(_blocks.path_name(paths[i]))
        if not found[i]:
            raise ValueError(
                f'`score="momentum"` finds no momentum for {place} in the state of '
                f"`inner`: it must keep a tree named {' or '.join(_MOMENTUM_FIELDS)}, "
                "as optax.adam, optax.lion and optax.sgd with `momentum` do, or "
                "the tensor be `dense`"
            )
        if len(found[i]) > 1:
            raise ValueError(
                f'`score="momentum"` finds two momenta for {place} in the state of '
                "`inner`: filter the one transformation whose momentum is to be ranked"
            )
    return [found[i][0] for i in ranked]


def step_count(state: optax.OptState) -> jax.Array:
    """Returns how many updates an optimizer's state has seen.

    Raises:
      ValueError: If the state does not keep a count.
    """
    counts = [count for count in _fields(state, ("count",)) if jnp.ndim(count) == 0]
    if not counts:
        raise ValueError(
            "`update_fraction` is a schedule, and the state of `inner` keeps no "
            "`count` to evaluate it at: it must be a number, or `inner` keep a count"
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
