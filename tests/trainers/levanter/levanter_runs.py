"""Short runs of Levanter's trainer, for its tests."""

import dataclasses
import functools
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import assert_same_bits
from tests.trainers import comparing
from tests.trainers.comparing import DAMPING, by_path

pytest.importorskip(
    "levanter.trainer",
    reason="needs an environment with Levanter, which .ci/trainers makes",
)
from levanter.optim.config import AdamConfig  # pyright: ignore[reportMissingImports]
from levanter.trainer import Trainer  # pyright: ignore[reportMissingImports]

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


def layers(path: str) -> tuple[int, ...]:
    """Returns the axes that index stacked layers."""
    return (0,) if "/stacked/" in path else ()


def run_in(folder: str, optimizer: Any, steps: int = STEPS, lora: bool = False) -> Run:
    """Trains for some steps, resuming from the checkpoints in a folder."""
    config = train.make_config(folder, steps)
    factors = train.LORA if lora else None
    losses, start, state = train.train(config, optimizer, factors)
    params, momenta = map(
        by_path, (state.trainable_model, optax.tree.get(state.opt_state, "mu"))
    )
    assert params.keys() == momenta.keys()
    assert any(map(layers, momenta))
    return Run(losses, by_path(start), params, momenta, state.opt_state)


@functools.cache
def run(name: str, steps: int = STEPS, lora: bool = False) -> Run:
    """Returns a run in a separate folder, which is performed on the first call."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(folder, OPTIMIZERS[name], steps, lora)


@functools.cache
def inverse() -> tuple[Any, Any]:
    """Returns the covariances of the tiny Llama, and an optimizer that uses them."""
    with tempfile.TemporaryDirectory() as folder:
        return inverse_in(folder)


def inverse_in(folder: str, damping: float = DAMPING) -> tuple[Any, Any]:
    """Returns the same with the configuration of a run, which may be resumed."""
    config = dataclasses.replace(train.make_config(folder, 1), load_checkpoint=False)
    with Trainer(config, optax.sgd(0.1), train.loss_of) as trainer:
        key = jax.random.PRNGKey(1)
        state = trainer.initial_state(key, model_init=lambda: train.build(None))
        data = train.ListAsyncDataset(train.examples(train.BATCH))
        texts = list(trainer.data_loader(data))
        found = train.input_covariances(trainer, state.model, texts)
        scale = mofo_jax.scale_by_inverse_covariance(found, damping)
        scale = train.with_names(scale, scale.init(state.trainable_model))
    return found, optax.chain(
        optax.scale_by_adam(), scale, optax.scale_by_learning_rate(1e-2)
    )


def check_scaled_step(folder: str) -> Any:
    """Compares the first step with Adam's times the inverse, and returns the state."""
    covariances, optimizer = inverse()
    ours = run_in(f"{folder}/ours", optimizer, 1)
    adam = run_in(f"{folder}/adam", optax.adam(1e-2), 1)
    assert_same_bits(ours.start, adam.start)
    comparing.check_scaled_step(covariances, ours.start, adam.params, ours.params)
    return ours.state


def check_everything_is_adam(lora: bool = False) -> None:
    """Compares MoFO with a fraction of one with Adam."""
    ours, desired = run("everything", lora=lora), run("adam", lora=lora)
    comparing.assert_equal_runs(ours, desired, STEPS)


def check_first_step(lora: bool = False) -> None:
    """Compares the first step of MoFO with the momenta of Adam's."""
    adam, ours = run("adam", 1, lora), run("mofo", 1, lora)
    assert ours.losses == adam.losses
    assert_same_bits(ours.start, adam.start)
    comparing.assert_the_largest_moved(ours.start, ours.params, adam.momenta, layers)
