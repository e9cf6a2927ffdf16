"""Orbax's two interfaces, one behind the other's words.

The newer one was renamed while it was new: `save_pytree` has become `save`, and so on.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from examples.trainers.orbax_checkpoints import open_checkpoints


class Checkpoints(NamedTuple):
    """What a run does with its checkpoints.

    Attributes:
      save: takes a step and a tree.
      restore: takes a step and a tree of what to restore, and returns it.
      stored: takes a step and returns the tree of its metadata.
    """

    save: Callable[[int, Any], Any]
    restore: Callable[[int, Any], Any]
    stored: Callable[[int], Any]


@contextlib.contextmanager
def manager(path: pathlib.Path) -> Iterator[Checkpoints]:
    """Opens checkpoints by `CheckpointManager`."""
    with open_checkpoints(path) as kept:
        yield Checkpoints(
            lambda step, tree: kept.save(step, args=ocp.args.StandardSave(tree)),
            lambda step, like: kept.restore(step, args=ocp.args.StandardRestore(like)),
            lambda step: kept.item_metadata(step).tree,
        )


@contextlib.contextmanager
def checkpointer(path: pathlib.Path) -> Iterator[Checkpoints]:
    """Opens checkpoints by `orbax.checkpoint.v1`."""
    kept = ocp.v1.training.Checkpointer(path.absolute())
    save, restore, stored = (
        getattr(kept, new, None) or getattr(kept, old)
        for new, old in (
            ("save", "save_pytree"),
            ("load", "load_pytree"),
            ("metadata", "pytree_metadata"),
        )
    )
    try:
        yield Checkpoints(save, restore, lambda step: stored(step).metadata)
    finally:
        kept.close()


APIS = {"manager": manager, "v1": checkpointer}
