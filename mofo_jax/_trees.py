"""Trees of parameters beside trees of updates."""

from typing import Any

import jax
import optax


def like_updates(tree: Any, updates: optax.Updates) -> Any:
    """Returns a tree without the leaves of parameters that have no update.

    Such parameters, of integers for instance, are None in the updates of Equinox.

    Args:
      tree: A tree with a leaf for each parameter.
      updates: The tree of updates.
    """
    return jax.tree.map(
        lambda update, leaf: None if update is None else leaf,
        updates,
        tree,
        is_leaf=lambda update: update is None,
    )


def with_all_leaves(tree: Any, old: Any) -> Any:
    """Returns a tree with the leaves of an older one where it has None."""
    return jax.tree.map(
        lambda new, kept: kept if new is None else new,
        tree,
        old,
        is_leaf=lambda new: new is None,
    )
