"""Short runs of MaxText's programs, read from its files, for its tests.

Losses are read from MaxText's metrics, parameters and moments from its checkpoints.
"""

import functools
import importlib
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers import assert_same_bits, selected
from tests.trainers.comparing import FRACTION, by_path

pytest.importorskip(
    "maxtext.trainers.pre_train.train",
    reason="needs an environment with MaxText, which .ci/trainers makes",
)
from maxtext.utils.globals import (  # pyright: ignore[reportMissingImports]
    MAXTEXT_CONFIGS_DIR,
    MAXTEXT_PKG_DIR,
)

from examples.trainers.maxtext import registration

CONFIG = f"{MAXTEXT_CONFIGS_DIR}/decoupled_base_test.yml"
TOKENIZERS = f"{MAXTEXT_PKG_DIR}/assets/tokenizers"
PRE_TRAINING = "maxtext.trainers.pre_train.train"
STEPS = 3
MODEL = (
    "model_name=default",
    "base_emb_dim=64",
    "base_num_query_heads=4",
    "base_num_kv_heads=2",
    "base_mlp_dim=128",
    "base_num_decoder_layers=3",
    "head_dim=16",
    "vocab_size=256",
    "max_target_length=32",
    "per_device_batch_size=4",
    "dataset_type=synthetic",
    "learning_rate=1e-2",
    "learning_rate_schedule_steps=100",
    "warmup_steps_fraction=0",
    "skip_jax_distributed_system=true",
    "async_checkpointing=false",
)
OPTIMIZERS = {
    "adamw": ["opt_type=adamw"],
    "everything": ["opt_type=mofo", "mofo_update_fraction=1"],
    "mofo": ["opt_type=mofo"],
    # A rate of 0 leaves the parameters, and the state has the gradients.
    "start": ["opt_type=adamw", "learning_rate=0"],
}
Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """The result of a run.

    Attributes:
      losses: the loss of each step, from MaxText's metrics.
      params: the parameters after each step, by path, from MaxText's checkpoints.
      states: the optimizer's states at the same times.
    """

    losses: list[float]
    params: list[Arrays]
    states: list[Arrays]


def without_boxes(tree: Any) -> Arrays:
    """Returns the arrays of a part of a checkpoint by the model's paths."""
    return {
        path.replace("params/", "", 1): array for path, array in by_path(tree).items()
    }


def read(folder: pathlib.Path, name: str) -> Run:
    """Reads the files of a run."""
    lines = (folder / f"{name}.metrics").read_text().splitlines()
    losses = [json.loads(line)["learning/loss"] for line in lines]
    params, states = [], []
    steps = sorted(map(int, ocp.utils.checkpoint_steps(folder / name / "checkpoints")))
    for step in steps:
        path = folder / name / "checkpoints" / str(step) / "items"
        stored: Any = ocp.PyTreeCheckpointer().restore(path)
        params.append(without_boxes(stored["params"]))
        states.append(without_boxes(stored["opt_state"]))
    return Run(losses, params, states)


def run_program(
    folder: pathlib.Path,
    name: str,
    *arguments: str,
    steps: int = STEPS,
    program: str = PRE_TRAINING,
) -> Run:
    """Runs one of MaxText's programs in this process, like the launcher."""
    registration.register()
    keys = {argument.split("=")[0]: argument for argument in (*MODEL, *arguments)}
    importlib.import_module(program).main(
        [
            program,
            CONFIG,
            *keys.values(),
            f"run_name={name}",
            f"base_output_directory={folder}",
            f"metrics_file={folder / name}.metrics",
            f"steps={steps}",
            "enable_checkpointing=true",
            "checkpoint_period=1",
        ]
    )
    return read(folder, name)


@functools.cache
def run(optimizer: str, *arguments: str, steps: int = STEPS) -> Run:
    """Returns a run of MaxText's pre-training, which is performed on the first call."""
    with tempfile.TemporaryDirectory() as folder:
        return run_program(
            pathlib.Path(folder),
            optimizer,
            *arguments,
            *OPTIMIZERS[optimizer],
            steps=steps,
        )


def momenta(state: Arrays) -> Arrays:
    """Returns the momenta of a state by the paths of parameters."""
    return {
        path.split("/mu/")[1]: array for path, array in state.items() if "/mu/" in path
    }


def layers(path: str) -> tuple[int, ...]:
    """Returns the axes that index layers, if they are scanned."""
    return (1,) if "/layers/" in path else ()


def assert_equal_runs(actual: Run, desired: Run) -> None:
    """Compares losses, parameters and states, bit for bit."""
    assert actual.losses == desired.losses
    assert len(set(desired.losses)) == len(desired.losses) == len(desired.params)
    for ours, theirs in zip(actual[1:], desired[1:], strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert_same_bits(mine, other)


def assert_the_largest_moved(
    before: Arrays, after: Arrays, momentum: Arrays, axes: Any = layers
) -> None:
    """Compares the coordinates that moved with NumPy's selection from the momenta."""
    assert before.keys() == after.keys() == momentum.keys()
    for path, m in momentum.items():
        expected = selected(m, FRACTION, axes(path)) & (m != 0)
        np.testing.assert_array_equal(before[path] != after[path], expected, path)


def check_first_step(*arguments: str) -> None:
    """Compares MoFO's first step with NumPy's selection from AdamW's gradients."""
    start = run("start", *arguments, steps=1)
    first = run("mofo", *arguments)
    assert first.losses[0] == start.losses[0]
    # After one step, a momentum is 1 - b1 times the gradient, clipped by MaxText.
    gradients = momenta(start.states[0])
    for path, array in momenta(first.states[0]).items():
        np.testing.assert_array_equal(array, gradients[path], path)
    assert_the_largest_moved(start.params[0], first.params[0], gradients)
