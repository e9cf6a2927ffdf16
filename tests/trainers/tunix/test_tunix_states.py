"""Tunix's checkpoints of MoFO's state, and optimizers from its command line."""

import pathlib
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import mofo_jax
from tests.helpers import assert_same_bits
from tests.trainers.tunix import tunix_runs

# Imported after the check for Tunix.
from examples.trainers.tunix import train as tunix_trainer  # isort: skip
from tunix.cli import (  # isort: skip  # pyright: ignore[reportMissingImports]
    config as command_line,
)


def options(path: pathlib.Path, steps: int) -> dict[str, Any]:
    """Returns the options of a run that ends after some steps and saves each."""
    return {
        "max_steps": steps,
        "checkpoint_root_directory": str(path),
        "checkpointing_options": ocp.CheckpointManagerOptions(
            save_interval_steps=1, enable_async_checkpointing=False
        ),
    }


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_mofo_resumes_a_run_of_adamw_and_back(
    lora: bool, tmp_path: pathlib.Path
) -> None:
    adamw, mofo = optax.adamw(1e-2), mofo_jax.mofo(1e-2)
    first = tunix_runs.train(adamw, lora=lora, **options(tmp_path, 2))
    second = tunix_runs.train(mofo, lora=lora, **options(tmp_path, tunix_runs.STEPS))
    # The stored state replaces the new model's, and two batches are skipped.
    assert len(second.losses) == 1
    assert_same_bits(second.params[0], first.params[-1])
    third = tunix_runs.Run([], second.params[-2:], second.momenta[-1:], None)
    tunix_runs.assert_the_largest_move(third)
    # An unbroken run of AdamW had the same parameters before its third step, so the
    # same gradients, and the moments must be equal: they were restored.
    whole = tunix_runs.run("adamw", lora)
    for path, momentum in third.momenta[0].items():
        np.testing.assert_allclose(
            momentum, whole.momenta[2][path], rtol=1e-4, atol=1e-7, err_msg=path
        )
    mesh = tunix_trainer.make_mesh(jax.devices()[:1])
    model = tunix_trainer.build(tunix_runs.CONFIG, mesh, lora)
    back = tunix_trainer.make_trainer(
        model, adamw, **options(tmp_path, tunix_runs.STEPS)
    )
    back.close()
    assert back.train_steps == tunix_runs.STEPS
    restored = nnx.state(back.optimizer, nnx.optimizer.OptState)
    assert_same_bits(
        restored, nnx.state(second.trainer.optimizer, nnx.optimizer.OptState)
    )
    assert (
        int(optax.tree.get(back.optimizer.opt_state, "count")[...]) == tunix_runs.STEPS
    )


def test_the_command_line_makes_mofo_from_its_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It looks names up in Optax, and passes the arguments that are configured.
    monkeypatch.setattr(optax, "mofo", mofo_jax.mofo, raising=False)
    pipeline = object.__new__(command_line.HyperParameters)
    pipeline.config = {
        "optimizer_config": {
            "opt_type": "mofo",
            "schedule_type": "linear_schedule",
            "init_value": 1e-2,
            "end_value": 0.0,
            "transition_steps": 10,
            "update_fraction": 0.15,
            "score": "momentum",
        }
    }
    ours = tunix_runs.train(pipeline.create_optimizer("optimizer_config"))
    tunix_runs.assert_the_largest_move(ours)
    injected = ours.trainer.optimizer.opt_state.hyperparams
    # Numbers are injected as arrays, as for Optax's own optimizers.
    assert float(injected["update_fraction"][...]) == np.float32(0.15)
    assert {"b1", "b2", "eps", "learning_rate", "unselected_scale"} <= set(injected)
    logged = tunix_trainer.history(ours.trainer, "learning_rate")
    # The trainer reads the rate after the next step, except at the last one.
    np.testing.assert_allclose(logged, [9e-3, 8e-3, 8e-3], rtol=1e-6)


def test_the_logger_finds_no_rate_in_the_state() -> None:
    ours = tunix_runs.run("mofo", False)
    assert len(ours.losses) == tunix_runs.STEPS
    logger = ours.trainer.metrics_logger
    assert not logger.metric_exists("", "learning_rate", "train")
