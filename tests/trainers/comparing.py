"""Properties of MoFO in every trainer, and the optimizers to test them with.

Also those of the inverse input covariance.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import mofo_jax
from mofo_jax._covariances import given
from tests.helpers import assert_same_bits, free_port, selected

FRACTION = 0.15
DAMPING = 0.3
LIMIT_SECONDS = 600  # Far longer than two processes need.
# A function that returns losses, parameters and state after steps from a fixed start.
Train = Callable[[optax.GradientTransformation, int], tuple[list[float], Any, Any]]


class Optimizers(NamedTuple):
    """AdamW, MoFO with a fraction of 1, and MoFO with its default fraction."""

    adamw: optax.GradientTransformation
    everything: optax.GradientTransformation
    mofo: optax.GradientTransformation


def make_optimizers(**options: Any) -> Optimizers:
    """Makes the three optimizers; reusing them in a trainer avoids compilation."""
    return Optimizers(
        optax.adamw(1e-2, weight_decay=0.1),
        mofo_jax.mofo(1e-2, weight_decay=0.1, update_fraction=1, **options),
        mofo_jax.mofo(1e-2, weight_decay=0.1, **options),
    )


def gathered(x: Any) -> np.ndarray:
    """Returns an array that several processes may hold together."""
    if getattr(x, "is_fully_addressable", True):
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): gathered(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def momenta(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the momenta of a state by the paths of parameters."""
    return {
        path.split("/mu/")[1]: array for path, array in state.items() if "/mu/" in path
    }


def assert_equal_runs(
    actual: tuple[Any, ...], desired: tuple[Any, ...], steps: int
) -> None:
    """Compares runs, whose first items are their losses, bit for bit."""
    # Levanter reports the loss of the last step twice.
    assert len(set(desired[0])) == steps
    assert_same_bits(actual, desired)


def check_everything_is_adamw(train: Train, optimizers: Optimizers) -> None:
    """Compares losses, parameters and state after three steps, bit for bit."""
    assert_equal_runs(train(optimizers.everything, 3), train(optimizers.adamw, 3), 3)


def moved_at_first(train: Train, optimizer: Any) -> dict[str, np.ndarray]:
    """Returns the coordinates that a trainer's first step moves."""
    start, after = (by_path(train(optimizer, steps)[1]) for steps in (0, 1))
    return {path: after[path] != start[path] for path in start}


def whole(_: str) -> tuple[int, ...]:
    """Returns the block axes that make every tensor one block."""
    return ()


def assert_the_largest_moved(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    momenta: Mapping[str, np.ndarray],
    axes: Callable[[str], tuple[int, ...]] = whole,
) -> None:
    """Compares the coordinates that moved with NumPy's selection from the momenta.

    Parameters without a momentum must not move.
    """
    assert momenta and before.keys() == after.keys() >= momenta.keys()
    for path, start in before.items():
        m = momenta.get(path, np.zeros(start.shape))
        expected = selected(m, FRACTION, axes(path)) & (m != 0)
        np.testing.assert_array_equal(start != after[path], expected, path)


def check_first_step(
    train: Train,
    optimizers: Optimizers,
    axes: Callable[[str], tuple[int, ...]] = whole,
) -> dict[str, np.ndarray]:
    """Compares the coordinates of the first step with NumPy's selection.

    NumPy selects from AdamW's momentum.

    Returns which coordinates moved, by path.
    """
    start, after = (by_path(train(optimizers.mofo, steps)[1]) for steps in (0, 1))
    momenta = by_path(optax.tree.get(train(optimizers.adamw, 1)[2], "mu"))
    assert len(momenta) == len(start) > 1
    # A box or a variable adds a key to the path of its array.
    momenta = dict(zip(start, momenta.values(), strict=True))
    assert_the_largest_moved(start, after, momenta, axes)
    return {path: after[path] != start[path] for path in start}


def check_scaled_step(
    covariances: Any,
    start: Mapping[str, np.ndarray],
    adam: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
) -> None:
    """Compares a step with Adam's, which NumPy multiplies by the inverses.

    Args:
      covariances: the covariances that the optimizer uses.
      start: the parameters before the step, by path.
      adam: those after a step of Adam with the same learning rate.
      ours: those after Adam's step was multiplied.
    """
    found = given.by_path(covariances).items()
    known = {path: covariance for path, covariance in found if covariance is not None}
    assert known.keys() < start.keys()
    smaller = 0
    for path, before in start.items():
        step = adam[path].astype(np.float64) - before
        if path in known:
            plain, step = step, _inverse(known[path], step)
            smaller += np.linalg.norm(step) < 0.9 * np.linalg.norm(plain)
        np.testing.assert_allclose(
            ours[path].astype(np.float64) - before,
            step,
            rtol=1e-3,
            atol=1e-3 * np.max(np.abs(step)) + 1e-7,
            err_msg=path,
        )
    assert smaller > len(known) / 2


def _inverse(covariance: mofo_jax.InputCovariance, step: np.ndarray) -> np.ndarray:
    order = *covariance.batch_axes, *covariance.axes
    moved = np.moveaxis(step, order, range(len(order)))
    a = gathered(covariance.matrix).astype(np.float64)
    mean = np.trace(a, axis1=-2, axis2=-1)[..., None, None] / a.shape[-1]
    # Inputs that are always zero do not change the step.
    damped = np.eye(a.shape[-1]) + a / np.where(mean > 0, DAMPING * mean, np.inf)
    scaled = np.linalg.solve(damped, moved.reshape(*a.shape[:-1], -1))
    return np.moveaxis(scaled.reshape(moved.shape), range(len(order)), order)


def check_two_processes(trainer: str, folder: pathlib.Path) -> None:
    """Runs `check_scaled_step` in two processes, as the pages say.

    Args:
      trainer: the name of a folder of this one.
      folder: an empty directory.
    """
    port = str(free_port())
    program = sys.executable, "-m", "tests.trainers.two_processes", trainer
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS": "true",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    running, outputs = [], [folder / f"output_{index}" for index in range(2)]
    try:
        for index, path in enumerate(outputs):
            with path.open("w") as output:
                words = *program, str(folder), port, str(index)
                one = subprocess.Popen(
                    words, env=environment, stdout=output, stderr=output
                )
            running.append(one)
        for one in running:
            one.wait(LIMIT_SECONDS)
    finally:
        for one in running:
            one.kill()
    for one, path in zip(running, outputs, strict=True):
        assert one.returncode == 0, path.read_text()
        assert "equal to NumPy" in path.read_text()
