"""Tunix's trainer on four devices: the same selection, and states like parameters."""

import functools
import importlib
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax

HEADS = {
    **{f"layers/0/attn/{name}_proj/w": (1,) for name in "qkv"},
    "layers/0/attn/o_proj/w": (0,),
}


@pytest.fixture(scope="module")
def tunix_runs() -> Any:
    """Imported here, so that tests are skipped without Tunix instead of failing."""
    return importlib.import_module("tests.trainers.tunix.tunix_runs")


@functools.cache
def run(tunix_runs: Any, devices: int, lora: bool, newer: bool = False) -> Any:
    """Returns a run with heads as blocks, which is performed on the first call."""
    mesh = tunix_runs.make_mesh(devices)
    blocks = mofo_jax.block_rules("tunix", "head")
    optimizer = mofo_jax.mofo(1e-2, block_axes=blocks)
    around = jax.set_mesh(mesh) if newer else None
    return tunix_runs.train(optimizer, lora=lora, mesh=mesh, around=around)


LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@LORA
def test_moments_are_sharded_like_parameters(lora: bool, tunix_runs: Any) -> None:
    trainer = run(tunix_runs, 4, lora).trainer
    params = dict(nnx.to_flat_state(nnx.state(trainer.model, nnx.Param)))
    split = 0
    for name in ("mu", "nu"):
        moments = optax.tree.get(trainer.optimizer.opt_state, name)
        for path, moment in nnx.to_flat_state(moments):
            moment, param = moment[...], params[path][...]
            assert moment.shape == param.shape
            assert moment.sharding.is_equivalent_to(param.sharding, param.ndim)
            assert len(param.sharding.device_set) == 4
            split += not param.is_fully_replicated
    assert split
    # Apart from moments, a state only has scalars of the whole model.
    others = optax.tree.get(trainer.optimizer.opt_state, "count")
    assert others[...].shape == ()


@LORA
def test_four_devices_select_as_one_does(lora: bool, tunix_runs: Any) -> None:
    one, four = run(tunix_runs, 1, lora), run(tunix_runs, 4, lora)
    for each in (one, four):
        tunix_runs.assert_the_largest_move(each, HEADS)
    for path in one.params[0]:
        masks = [each.params[1][path] != each.params[0][path] for each in (one, four)]
        np.testing.assert_array_equal(*masks, err_msg=path)
        np.testing.assert_allclose(
            four.params[-1][path], one.params[-1][path], rtol=1e-3, atol=1e-5
        )
    np.testing.assert_allclose(four.losses, one.losses, rtol=1e-5)


def test_matrices_are_sharded_and_the_numbers_are_the_same(tunix_runs: Any) -> None:
    (_, one), (covariances, four) = map(tunix_runs.run_inverse, (1, 4))
    for path, param in one.params[-1].items():
        np.testing.assert_allclose(
            four.params[-1][path], param, rtol=1e-3, atol=1e-5, err_msg=path
        )
    matrices = jax.tree.leaves(four.trainer.optimizer.opt_state[1])
    assert len(matrices) == 5
    for matrix in matrices:
        assert matrix.sharding.shard_shape(matrix.shape)[0] == len(matrix) // 4
    for covariance in jax.tree.leaves(covariances):
        assert not covariance.is_fully_replicated


def test_tunix_shards_batches_only_within_the_older_context(tunix_runs: Any) -> None:
    trainer = tunix_runs.tunix_trainer
    mesh = trainer.make_mesh(jax.devices()[:4])
    batch = next(trainer.batches(1, tunix_runs.CONFIG.vocab_size))
    sharding_utils = pytest.importorskip("tunix.sft.sharding_utils")
    with mesh:
        split = sharding_utils.shard_input(batch, ("fsdp",)).input_tokens
    assert split.addressable_shards[0].data.shape == (2, 16)
    with jax.set_mesh(mesh):
        assert sharding_utils.shard_input(batch, ("fsdp",)) is batch


def test_within_the_newer_context_the_numbers_are_the_same(tunix_runs: Any) -> None:
    newer, older = run(tunix_runs, 4, False, newer=True), run(tunix_runs, 4, False)
    tunix_runs.assert_the_largest_move(newer, HEADS)
    np.testing.assert_allclose(newer.losses, older.losses, rtol=1e-5)
