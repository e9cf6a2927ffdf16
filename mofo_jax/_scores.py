"""What ranks the coordinates of an update."""

from typing import Any

import jax
import optax

_MOMENTUM_FIELDS = ("mu", "trace")


def momentum(state: optax.OptState, updates: optax.Updates) -> list[jax.Array]:
    """Finds the momentum that an optimizer's state keeps, wherever it sits.

    Args:
      state: Any state of Optax transformations, nested as it may be.
      updates: The tree of updates.

    Returns:
      The momentum of each leaf of `updates`, in the tree's order.

    Raises:
      ValueError: If the state keeps no momentum, or two, for some parameter.
    """
    structure = jax.tree.structure(updates)
    found: list[Any] = [None] * structure.num_leaves
    for tree in _fields(state, _MOMENTUM_FIELDS):
        for i, leaf in enumerate(structure.flatten_up_to(tree)):
            # Under `optax.partition` each group's momentum has holes for the others.
            if isinstance(leaf, optax.MaskedNode):
                continue
            if found[i] is not None:
                raise ValueError(
                    '`score="momentum"` finds two momenta in the state of `inner`: '
                    "filter the one transformation whose momentum is to be ranked"
                )
            found[i] = leaf
    if any(leaf is None for leaf in found):
        raise ValueError(
            '`score="momentum"` finds no momentum in the state of `inner`: it must '
            f"keep a tree named {' or '.join(_MOMENTUM_FIELDS)}, as optax.adam, "
            "optax.lion and optax.sgd with `momentum` do"
        )
    return found


def step_count(state: optax.OptState) -> jax.Array:
    """Returns how many updates an optimizer's state has seen.

    Raises:
      ValueError: If the state does not keep a count.
    """
    counts = _fields(state, ("count",))
    if not counts:
        raise ValueError(
            "`update_fraction` is a schedule, and the state of `inner` keeps no "
            "`count` to evaluate it at: it must be a number, or `inner` keep a count"
        )
    return counts[0]


def _fields(state: optax.OptState, names: tuple[str, ...]) -> list[Any]:
    """Returns the values of the named fields of the states nested in `state`.

    Fields only: a parameter, too, may be called `mu`.
    """
    return [
        value
        for name in names
        for path, value in optax.tree.get_all_with_path(state, name)
        if isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    ]
