"""Orbax's two interfaces behind one set of functions.

The newer interface changed its names: `save_pytree` became `save`, and so on.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from examples.trainers.orbax_checkpoints import open_checkpoints


class Checkpoints(NamedTuple):
    """Access to the checkpoints of a run.

    Attributes:
      save: a function of a step and a tree.
      restore: a function of a step and an abstract tree, which returns the tree.
      stored: a function of a step, which returns the tree of its metadata.
    """

    save: Callable[[int, Any], Any]
    restore: Callable[[int, Any], Any]
    stored: Callable[[int], Any]


@contextlib.contextmanager
def manager(path: pathlib.Path) -> Iterator[Checkpoints]:
    """Opens checkpoints with `CheckpointManager`."""
    with open_checkpoints(path) as kept:
        yield Checkpoints(
            lambda step, tree: kept.save(step, args=ocp.args.StandardSave(tree)),
            lambda step, like: kept.restore(step, args=ocp.args.StandardRestore(like)),
            lambda step: kept.item_metadata(step).tree,
        )


@contextlib.contextmanager
def checkpointer(path: pathlib.Path) -> Iterator[Checkpoints]:
    """Opens checkpoints with `orbax.checkpoint.v1`."""
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
