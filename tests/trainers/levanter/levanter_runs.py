"""Short runs of Levanter's trainer, for its tests."""

import functools
import tempfile
from typing import Any, NamedTuple

import numpy as np
import optax
import pytest

from tests.helpers import assert_same_bits, selected
from tests.trainers.comparing import FRACTION, by_path

pytest.importorskip(
    "levanter.trainer",
    reason="needs an environment with Levanter, which .ci/trainers makes",
)
from levanter.optim.config import AdamConfig  # pyright: ignore[reportMissingImports]

from examples.trainers.levanter import registration, train

STEPS = 3
OPTIONS = {**train.ADAM, "weight_decay": 0.1}
OPTIMIZERS: dict[str, Any] = {
    "adam": AdamConfig(**OPTIONS),
    "everything": registration.MoFOConfig(**OPTIONS, update_fraction=1),
    "mofo": registration.MoFOConfig(**OPTIONS),
}
Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """The result of a run.

    Attributes:
      losses: the loss of each step, as the trainer reports it.
      start: the parameters before the first step, by path.
      params: the parameters after the last step.
      momenta: the momenta after the last step.
      state: the state of the optimizer after the last step.
    """

    losses: list[float]
    start: Arrays
    params: Arrays
    momenta: Arrays
    state: Any


def run_in(folder: str, name: str, steps: int = STEPS, lora: bool = False) -> Run:
    """Trains for some steps, resuming from the checkpoints in a folder."""
    config = train.make_config(folder, steps)
    factors = train.LORA if lora else None
    losses, start, state = train.train(config, OPTIMIZERS[name], factors)
    return Run(
        losses,
        by_path(start),
        by_path(state.trainable_model),
        by_path(optax.tree.get(state.opt_state, "mu")),
        state.opt_state,
    )


@functools.cache
def run(name: str, steps: int = STEPS, lora: bool = False) -> Run:
    """Returns a run in a separate folder, which is performed on the first call."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(folder, name, steps, lora)


def assert_equal_runs(actual: Run, desired: Run) -> None:
    """Compares losses, parameters and state, bit for bit."""
    assert actual.losses == desired.losses
    assert len(set(desired.losses)) == STEPS
    assert_same_bits(actual.params, desired.params)
    assert_same_bits(actual.state, desired.state)


def assert_the_largest_moved(before: Arrays, after: Arrays, momentum: Arrays) -> None:
    """Compares the coordinates that moved with those that NumPy selects by layer."""
    assert before.keys() == after.keys() == momentum.keys()
    assert any("/stacked/" in path for path in momentum)
    for path, m in momentum.items():
        axes = (0,) if "/stacked/" in path else ()
        expected = selected(m, FRACTION, axes) & (m != 0)
        np.testing.assert_array_equal(before[path] != after[path], expected, path)


def check_everything_is_adam(lora: bool = False) -> None:
    """Compares MoFO with a fraction of one with Adam."""
    assert_equal_runs(run("everything", lora=lora), run("adam", lora=lora))


def check_first_step(lora: bool = False) -> None:
    """Compares the first step of MoFO with the momenta of Adam's."""
    adam, ours = run("adam", 1, lora), run("mofo", 1, lora)
    assert ours.losses == adam.losses
    assert_same_bits(ours.start, adam.start)
    assert_the_largest_moved(ours.start, ours.params, adam.momenta)
