"""Short runs of Kauldron, read from its files, for its tests."""

import functools
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers import assert_same_bits, selected
from tests.trainers.comparing import FRACTION, by_path

pytest.importorskip(
    "kauldron.kd",
    reason="needs an environment with Kauldron and Gemma, which .ci/trainers makes",
)
pytest.importorskip("gemma")
import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
from kauldron import kd, konfig  # pyright: ignore[reportMissingImports]

from examples.trainers.kauldron import sft

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


def run_in(
    workdir: pathlib.Path,
    name: str,
    *,
    lora: bool = False,
    steps: int = STEPS,
    **fields: Any,
) -> Run:
    """Trains with the configuration of our example and another optimizer."""
    config = sft.get_config(lora=lora, optimizer=optimizer(name))
    config.workdir = str(workdir)
    # Kauldron stores the state before a step, and takes one step more than this.
    config.num_train_steps = steps
    config.checkpointer.save_interval_steps = 1
    config.checkpointer.max_to_keep = None
    for field, value in fields.items():
        config[field] = value
    trainer = konfig.resolve(config)
    assert isinstance(trainer, kd.train.Trainer)
    trainer.train()
    return read(workdir)


@functools.cache
def run(name: str, lora: bool = False, sharded: bool = False) -> Run:
    """Returns a run, which is performed on the first call."""
    fields: dict[str, Any] = {}
    if sharded:
        with konfig.imports():
            from kauldron import kd as configured
        fsdp = configured.sharding.FSDPSharding()
        fields["sharding"] = configured.sharding.ShardingStrategy(params=fsdp)
    with tempfile.TemporaryDirectory() as folder:
        return run_in(pathlib.Path(folder), name, lora=lora, **fields)


def momenta(state: Arrays) -> Arrays:
    """Returns the momenta of a state by the paths of parameters."""
    return {
        path.split("/mu/")[1]: array for path, array in state.items() if "/mu/" in path
    }


def assert_equal_runs(actual: Run, desired: Run) -> None:
    """Compares losses, parameters and states, bit for bit."""
    assert actual.losses == desired.losses
    assert len(set(desired.losses)) == STEPS + 1
    for ours, theirs in zip(actual[1:], desired[1:], strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert_same_bits(mine, other)


def assert_the_largest_moved(before: Arrays, after: Arrays, momentum: Arrays) -> None:
    """Compares the coordinates that moved with NumPy's selection from the momenta."""
    assert before.keys() == after.keys() >= momentum.keys()
    for path, start in before.items():
        expected = np.zeros(start.shape, bool)
        if path in momentum:
            m = momentum[path]
            expected = selected(m, FRACTION) & (m != 0)
        np.testing.assert_array_equal(start != after[path], expected, path)


def check_first_step(lora: bool = False, sharded: bool = False) -> None:
    """Compares MoFO's first step with NumPy's selection from AdamW's gradients."""
    adamw, ours = run("adamw", lora, sharded), run("mofo", lora, sharded)
    assert ours.losses[0] == adamw.losses[0]
    assert_same_bits(ours.params[0], adamw.params[0])
    gradients = momenta(adamw.states[1])
    assert len(gradients) > 4
    assert_the_largest_moved(ours.params[0], ours.params[1], gradients)


def devices() -> int:
    """Returns the number of devices."""
    return len(jax.devices())
