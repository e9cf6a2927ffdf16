"""The optimizers with inverse covariances on a mesh of eight devices."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from examples.finetune.command.optimizers import COVARIANCES, NEEDS
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.pretrained import Source
from examples.finetune.training import information, own_text
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import init_state, make_step
from tests.finetune.arms import CONFIG, batches, own_texts

NAMES = [name for name, need in NEEDS.items() if need == COVARIANCES]
# A filter would select others where the last bits differ.
SETTINGS = dataclasses.replace(CONFIG, update_fraction=1.0)


def trained(
    source: Source, name: str, description: str, changes: dict[str, Any]
) -> tuple[Any, Any]:
    """Returns the parameters after two steps, and the optimizer's state."""
    settings = dataclasses.replace(SETTINGS, **changes)
    mesh = sharding.make_mesh(description)
    model = pretrained.build(source, scan_layers=True, mesh=mesh)
    graph, params = parameters.split(model)
    where = sharding.batch_sharding(mesh)

    def place(batch: Any) -> Any:
        return jax.device_put(batch, where)

    texts = own_text.batch(own_texts([12, 5, 9, 12, 12, 7, 8, 11]), 12)
    known = information.covariances(graph, params, [texts], place)
    transformation = make(name, settings, 1e-2, known)
    state = init_state(transformation, params)
    step = make_step(graph, transformation, 1, params, state)
    given = batches(settings)
    for _ in range(2):
        params, state, _ = step(params, state, place(next(given)))
    return params, state


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (NAMES[0], {"covariance_rank": 8}),
        pytest.param(
            NAMES[0], {"covariance_block_size": 16}, marks=pytest.mark.nightly
        ),
        *(pytest.param(name, {}, marks=pytest.mark.nightly) for name in NAMES),
    ],
)
def test_the_mesh_changes_nothing(
    tiny_source: Source, name: str, changes: dict[str, Any]
) -> None:
    one, _ = trained(tiny_source, name, "", changes)
    params, state = trained(tiny_source, name, "fsdp=4,tensor=2", changes)
    for path, leaf in parameters.flat(params).items():
        desired = np.asarray(parameters.flat(one)[path])
        np.testing.assert_allclose(leaf, desired, rtol=2e-3, atol=2e-4, err_msg=path)
    factors = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
        if "factors" in jax.tree_util.keystr(path)
    ]
    assert factors
    for leaf in factors:
        assert leaf.sharding.shard_shape(leaf.shape) != leaf.shape
