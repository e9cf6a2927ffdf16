"""Short runs of Kauldron, read from its files, for its tests."""

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.helpers import assert_same_bits
from tests.trainers import comparing
from tests.trainers.comparing import DAMPING, FRACTION, by_path, momenta

pytest.importorskip(
    "kauldron.kd",
    reason="needs an environment with Kauldron and Gemma, which .ci/trainers makes",
)
pytest.importorskip("gemma")
import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
from kauldron import kd, konfig  # pyright: ignore[reportMissingImports]

import mofo_jax
from examples.trainers.kauldron import sft
from examples.trainers.kauldron.covariances import input_covariances

STEPS = 3
WEIGHT_DECAY = 0.1
Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """The result of a run.

    Attributes:
      losses: the loss of each step, from Kauldron's metrics.
      params: the parameters before the first step and after each, from its checkpoints.
      states: the optimizer's states at the same times.
    """

    losses: list[float]
    params: list[Arrays]
    states: list[Arrays]


def optimizer(name: str) -> Any:
    """Returns the configuration of an optimizer."""
    # Imported here, because pytest looks for doctests in every name of a module.
    with konfig.imports():
        import optax

        import mofo_jax
    if name == "adamw":
        return optax.adamw(1e-2, weight_decay=WEIGHT_DECAY)
    if name == "adam":
        return optax.adam(1e-2)
    fraction = {"everything": 1, "mofo": FRACTION}[name]
    return mofo_jax.mofo(1e-2, weight_decay=WEIGHT_DECAY, update_fraction=fraction)


def read(workdir: pathlib.Path) -> Run:
    """Reads the files of a run."""
    losses = {}
    for path in sorted((workdir / "train").glob("*events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == "losses/total":
                    losses[event.step] = float(tf.make_ndarray(value.tensor))
    params, states = [], []
    for step in range(len(list((workdir / "checkpoints").glob("ckpt_*")))):
        path = workdir / "checkpoints" / f"ckpt_{step}" / "default"
        stored: Any = ocp.PyTreeCheckpointer().restore(path)
        params.append(by_path(stored["params"]))
        states.append(by_path(stored["opt_state"]))
    return Run([losses[step] for step in sorted(losses)], params, states)


def make_trainer(
    workdir: pathlib.Path,
    optimizer: Any,
    *,
    lora: bool = False,
    sharded: bool = False,
    steps: int = STEPS,
) -> kd.train.Trainer:
    """Makes a trainer from the configuration of our example and another optimizer."""
    config = sft.get_config(lora=lora, optimizer=optimizer)
    config.workdir = str(workdir)
    # Kauldron stores the state before a step, and takes one step more than this.
    config.num_train_steps = steps
    config.checkpointer.save_interval_steps = 1
    config.checkpointer.max_to_keep = None
    if sharded:
        with konfig.imports():
            from kauldron import kd as configured
        # By default, parameters below four megabytes are replicated.
        fsdp = configured.sharding.FSDPSharding(min_size_to_shard_mb=0)
        config.sharding = configured.sharding.ShardingStrategy(params=fsdp)
    trainer = konfig.resolve(config)
    assert isinstance(trainer, kd.train.Trainer)
    return trainer


def run_in(workdir: pathlib.Path, name: str, **options: Any) -> Run:
    """Trains in a folder, with options of `make_trainer`."""
    make_trainer(workdir, optimizer(name), **options).train()
    return read(workdir)


@functools.cache
def run(name: str, lora: bool = False, sharded: bool = False) -> Run:
    """Returns a run, which is performed on the first call."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(pathlib.Path(folder), name, lora=lora, sharded=sharded)


@functools.cache
def covariances(sharded: bool = False) -> Any:
    """Returns the covariances of the tiny Gemma."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(pathlib.Path(folder), optimizer("adam"), sharded=sharded)
        params, batch = trainer.init_state().params, next(iter(trainer.train_ds))
    tokens = jnp.asarray(batch["input"])
    return input_covariances(trainer.model, params, [tokens])


def run_inverse(
    workdir: pathlib.Path,
    sharded: bool = False,
    steps: int = STEPS,
    abstract: bool = False,
) -> tuple[Run, Any]:
    """Trains with the inverse input covariance; returns the last state too."""
    found = covariances(sharded)
    if abstract:
        found = jax.eval_shape(lambda: found)
    chain = optax.chain(
        optax.scale_by_adam(),
        mofo_jax.scale_by_inverse_covariance(found, DAMPING),
        optax.scale_by_learning_rate(1e-2),
    )
    trainer = make_trainer(workdir, optimizer("adam"), sharded=sharded, steps=steps)
    trainer = dataclasses.replace(trainer, optimizer=chain)
    state, _ = trainer.train()
    return read(workdir), state


def check_scaled_step(folder: pathlib.Path, sharded: bool = False) -> Any:
    """Compares the first step with Adam's times the inverse, and returns the state."""
    adam, (ours, state) = run("adam", sharded=sharded), run_inverse(folder, sharded)
    assert_same_bits(ours.params[0], adam.params[0])
    params = ours.params[0], adam.params[1], ours.params[1]
    comparing.check_scaled_step(covariances(sharded), *params)
    return state


def check_everything_is_adamw(lora: bool = False, sharded: bool = False) -> None:
    """Compares MoFO with a fraction of one with AdamW."""
    ours, desired = run("everything", lora, sharded), run("adamw", lora, sharded)
    comparing.assert_equal_runs(ours, desired, STEPS + 1)


def check_first_step(lora: bool = False, sharded: bool = False) -> None:
    """Compares MoFO's first step with NumPy's selection from AdamW's gradients."""
    adamw, ours = run("adamw", lora, sharded), run("mofo", lora, sharded)
    assert ours.losses[0] == adamw.losses[0]
    assert_same_bits(ours.params[0], adamw.params[0])
    gradients = momenta(adamw.states[1])
    assert len(gradients) > 4
    comparing.assert_the_largest_moved(ours.params[0], ours.params[1], gradients)


def devices() -> int:
    """Returns the number of devices."""
    return len(jax.devices())
