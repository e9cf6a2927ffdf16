"""Short runs of MaxText's programs, read from its files, for its tests.

Losses are read from MaxText's metrics, parameters and moments from its checkpoints.
"""

import functools
import importlib
import json
import pathlib
import tempfile
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import mofo_jax
from examples.trainers.flax_nnx_sharded import with_metadata
from tests.trainers import comparing
from tests.trainers.comparing import DAMPING, by_path, momenta

pytest.importorskip(
    "maxtext.trainers.pre_train.train",
    reason="needs an environment with MaxText, which .ci/trainers makes",
)
from maxtext.configs import pyconfig  # pyright: ignore[reportMissingImports]
from maxtext.utils import (  # pyright: ignore[reportMissingImports]
    maxtext_utils,
    model_creation_utils,
)
from maxtext.utils.globals import (  # pyright: ignore[reportMissingImports]
    MAXTEXT_CONFIGS_DIR,
    MAXTEXT_PKG_DIR,
)

from examples.trainers.maxtext import registration
from examples.trainers.maxtext.covariances import input_covariances

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
        assert params[-1].keys() == momenta(states[-1]).keys()
    return Run(losses, params, states)


def run_program(
    folder: pathlib.Path,
    name: str,
    *arguments: str,
    steps: int = STEPS,
    program: str = PRE_TRAINING,
    make: registration.Make = registration.make_mofo,
) -> Run:
    """Runs one of MaxText's programs in this process, like the launcher."""
    registration.register(make)
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


def layers(path: str) -> tuple[int, ...]:
    """Returns the axes that index layers, if they are scanned."""
    return (1,) if "/layers/" in path else ()


def assert_equal_runs(actual: Run, desired: Run) -> None:
    """Compares losses, parameters and states, bit for bit."""
    assert len(desired.losses) == len(desired.params)
    comparing.assert_equal_runs(actual, desired, len(desired.params))


def assert_the_largest_moved(before: Arrays, after: Arrays, momenta: Arrays) -> None:
    """Compares the coordinates that moved with those that NumPy selects by layer."""
    comparing.assert_the_largest_moved(before, after, momenta, layers)


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


def build(folder: str, *arguments: str) -> tuple[Any, Any]:
    """Returns MaxText's configuration of the small model, and the model."""
    keys = {argument.split("=")[0]: argument for argument in (*MODEL, *arguments)}
    given = *keys.values(), "run_name=model", f"base_output_directory={folder}"
    config = pyconfig.initialize(["test", CONFIG, *given, "steps=1"])
    mesh = maxtext_utils.get_mesh_from_config(config)
    return config, model_creation_utils.from_pretrained(config, mesh)


def inverse(
    folder: str, *arguments: str, damping: float = DAMPING
) -> tuple[Any, registration.Make]:
    """Returns the covariances of the small model, and a function for `register`."""
    config, model = build(folder, *arguments)
    tokens = np.random.RandomState(0).randint(0, 256, (8, 32))
    batch = {
        "inputs": tokens,
        "inputs_position": np.broadcast_to(np.arange(32), tokens.shape),
        "inputs_segmentation": np.ones_like(tokens),
    }
    found = input_covariances(config, model, [jax.tree.map(jnp.asarray, batch)])
    state = mofo_jax.scale_by_inverse_covariance(found, damping).init(
        nnx.state(model, nnx.Param)
    )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), found
    )
    inverse = mofo_jax.scale_by_inverse_covariance(abstract, DAMPING)
    inverse = with_metadata(inverse, state)

    def make(config: Any, schedule: Any, mask: Any) -> Any:
        del mask
        b1, b2, eps = config.adam_b1, config.adam_b2, config.adam_eps
        adam = optax.scale_by_adam(b1, b2, eps)
        return optax.chain(adam, inverse, optax.scale_by_learning_rate(schedule))

    return found, make


def check_scaled_step(folder: pathlib.Path, *arguments: str) -> list[jax.Array]:
    """Compares the first step with Adam's times the inverse.

    Returns the matrices of the first state.
    """
    start = run("start", *arguments, steps=1)
    adam = run("adamw", *arguments, "adam_weight_decay=0", steps=1)
    covariances, make = inverse(str(folder), *arguments)
    states = []
    setup = maxtext_utils.setup_initial_state

    def kept(*args: Any, **options: Any) -> Any:
        result = setup(*args, **options)
        states.append(result[0])
        return result

    with mock.patch.object(maxtext_utils, "setup_initial_state", kept):
        given = *arguments, "opt_type=mofo"
        ours = run_program(folder, "inverse", *given, steps=1, make=make)
    params = (each.params[0] for each in (start, adam, ours))
    comparing.check_scaled_step(covariances, *params)
    return jax.tree.leaves(states[0]["optimizer"]["opt_state"][1])
