"""Short runs of EasyDeL's trainer, for its tests."""

import functools
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import assert_same_bits
from tests.trainers import comparing
from tests.trainers.comparing import DAMPING, by_path

pytest.importorskip(
    "easydel.trainers",
    reason="needs an environment with EasyDeL, which .ci/trainers makes",
)
from examples.trainers.easydel import train as program

STEPS = 3
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "everything": {
        "optimizer": "mofo",
        "extra_optimizer_kwargs": {"update_fraction": 1},
    },
    "mofo": {"optimizer": "mofo"},
}
Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """The result of a run.

    Attributes:
      losses: the loss of each step, as the trainer reports it.
      start: the trained parameters before the first step, by path.
      params: the same after the last step.
      momenta: the momenta after the last step.
      state: the optimizer's state after the last step.
    """

    losses: list[float]
    start: Arrays
    params: Arrays
    momenta: Arrays
    state: Any


def flat(tree: Any) -> Arrays:
    """Returns the arrays of a state by path."""
    return {
        path.removesuffix("/value"): array.copy()
        for path, array in by_path(tree).items()
    }


def run_in(
    folder: str,
    name: str,
    *,
    lora: bool = False,
    axes: tuple[int, ...] = program.ONE_DEVICE,
    steps: int = STEPS,
    **options: Any,
) -> Run:
    """Trains for some steps, with checkpoints in a folder."""
    trainer = program.make_trainer(
        program.build(lora, axes),
        folder,
        max_training_steps=steps,
        **OPTIMIZERS.get(name, {}),
        **options,
    )
    start = flat(trainer.model_state.graphstate)
    losses: dict[int, float] = {}

    def log(metrics: dict[str, Any], step: int, log_as: str | None = None) -> None:
        if "train/loss" in metrics:
            losses[step] = float(metrics["train/loss"])

    trainer.arguments.log_metrics = log
    state = trainer.train().state
    params, momenta = map(
        flat, (state.graphstate, optax.tree.get(state.opt_state, "mu"))
    )
    assert params.keys() == momenta.keys()
    return Run(
        [losses[step] for step in sorted(losses)],
        start,
        params,
        momenta,
        state.opt_state,
    )


@functools.cache
def run(
    name: str,
    *,
    lora: bool = False,
    axes: tuple[int, ...] = program.ONE_DEVICE,
    steps: int = STEPS,
) -> Run:
    """Returns a run, which is performed on the first call."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(folder, name, lora=lora, axes=axes, steps=steps)


def check_everything_is_adamw(**case: Any) -> None:
    """Compares losses, parameters and state after three steps, bit for bit."""
    ours, desired = run("everything", **case), run("adamw", **case)
    comparing.assert_equal_runs(ours, desired, STEPS)


def batch() -> dict[str, jax.Array]:
    """Returns the first rows of the program, as EasyDeL's trainer gives them."""
    return {
        name: jnp.asarray(column)
        for name, column in program.rows()[: program.BATCH].items()
    }


@functools.cache
def covariances(axes: tuple[int, ...]) -> Any:
    """Returns the covariances of the tiny Llama."""
    return program.input_covariances(program.build(False, axes), [batch()])


def run_inverse(
    folder: str,
    axes: tuple[int, ...],
    steps: int = STEPS,
    damping: float = DAMPING,
    **options: Any,
) -> Run:
    """Trains with the inverse input covariance, with checkpoints in a folder."""
    own = {"covariances": lambda: covariances(axes), "damping": damping}
    optimizer = {"optimizer": "inverse_covariance", "extra_optimizer_kwargs": own}
    return run_in(folder, "", axes=axes, steps=steps, **optimizer, **options)


def check_scaled_step(folder: str, axes: tuple[int, ...] = program.ONE_DEVICE) -> Any:
    """Compares the first step with Adam's times the inverse, and returns the state."""
    adam, ours = run("adamw", axes=axes, steps=1), run_inverse(folder, axes, 1)
    assert_same_bits(ours.start, adam.start)
    comparing.check_scaled_step(covariances(axes), ours.start, adam.params, ours.params)
    return ours.state


def check_first_step(**case: Any) -> None:
    """Compares MoFO's first step with NumPy's selection from AdamW's gradients."""
    adamw, ours = run("adamw", steps=1, **case), run("mofo", steps=1, **case)
    assert ours.losses == adamw.losses
    assert_same_bits(ours.start, adamw.start)
    assert len(adamw.momenta) > 4
    comparing.assert_the_largest_moved(ours.start, ours.params, adamw.momenta)
