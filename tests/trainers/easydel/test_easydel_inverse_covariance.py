"""The inverse input covariance in EasyDeL's trainer."""

import pathlib

import jax
import numpy as np

from tests.helpers import assert_same_bits
from tests.trainers.comparing import DAMPING
from tests.trainers.easydel import easydel_runs


def test_the_first_step_is_adams_times_the_inverse(tmp_path: pathlib.Path) -> None:
    easydel_runs.check_scaled_step(str(tmp_path))


def test_padding_does_not_count() -> None:
    model, batch = easydel_runs.program.build(False), easydel_runs.batch()
    short = {name: column[:, :10] for name, column in batch.items()}
    mask = batch["attention_mask"].at[:, 10:].set(0)
    desired, actual, whole = (
        jax.tree.leaves(easydel_runs.program.input_covariances(model, [given]))
        for given in (short, {**batch, "attention_mask": mask}, batch)
    )
    assert len(desired) > 8
    for ours, expected, other in zip(actual, desired, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(ours, other, rtol=1e-2)


def test_a_run_continues_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    options = {"save_steps": 1, "resume_if_possible": True}
    axes = easydel_runs.program.ONE_DEVICE
    whole = easydel_runs.run_inverse(str(tmp_path / "whole"), axes, 3)
    begun = easydel_runs.run_inverse(str(tmp_path / "parts"), axes, 2, **options)
    # The matrices come from the checkpoint, so another damping changes nothing.
    other = 10 * DAMPING
    parts = easydel_runs.run_inverse(str(tmp_path / "parts"), axes, 3, other, **options)
    for path, param in begun.params.items():
        np.testing.assert_array_equal(parts.start[path], param, path)
    for path, param in whole.params.items():
        np.testing.assert_array_equal(parts.params[path], param, path)
    assert_same_bits(jax.tree.leaves(parts.state), jax.tree.leaves(whole.state))
