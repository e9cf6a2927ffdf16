"""Resumes a checkpoint of `runs` in a process with one device.

    python -m tests.checkpoints.one_device CHECKPOINTS

Writes the restored values to `restored.npz` and those one step later to
`following.npz`, in the same directory.
"""

import pathlib
import sys

import jax
import numpy as np

from examples.trainers.orbax_checkpoints import describe
from tests.checkpoints import runs
from tests.checkpoints.apis import manager


def main(path: pathlib.Path) -> None:
    """Restores, takes a step and writes both results."""
    if jax.device_count() != 1:
        raise RuntimeError(f"this process has {jax.device_count()} devices")
    mesh = runs.mesh_of(1)
    wanted = describe(runs.OPTIMIZER, runs.place(runs.arrays(0), mesh, axis=1))
    with manager(path) as checkpoints:
        restored = checkpoints.restore(runs.BEFORE, wanted)
    following = runs.train(restored, mesh, 1, [runs.BEFORE + 1])
    for name, tree in (("restored", restored), ("following", following)):
        np.savez(path / name, *(np.asarray(leaf) for leaf in jax.tree.leaves(tree)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
