"""Diagnostics of tensors that are sharded over eight devices."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mofo_jax
from tests.helpers import random_generator

SPECS = {"a": PartitionSpec("x"), "b": PartitionSpec(None, "x"), "c": PartitionSpec()}
RULES = mofo_jax.PathRules({"a|b": "spread"}, default="whole")


def trees() -> tuple[Any, Any]:
    random = random_generator()
    shapes = {"a": (16, 6), "b": (3, 24), "c": (5,)}
    start = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    moved = {n: x + (random.random(x.shape) < 0.3) for n, x in start.items()}
    return {n: x.astype(np.float32) for n, x in moved.items()}, start


def measure(params: Any, start: Any) -> Any:
    change = jax.tree.map(jnp.subtract, params, start)
    return (
        mofo_jax.selected_share(change),
        mofo_jax.mask_overlap(change, params),
        mofo_jax.distance_from_start(params, start, RULES),
        mofo_jax.ever_moved_share(params, start, RULES),
    )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_spread_tensors_give_the_same_without_gathering(axis_type: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    whole = trees()
    expected = jax.tree.map(np.asarray, jax.jit(measure)(*whole))
    with jax.set_mesh(mesh):
        places = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
        spread = [jax.device_put(tree, places) for tree in whole]
        compiled: Any = jax.jit(measure).lower(*spread).compile()
        found = compiled(*spread)
        eager = measure(*spread)
        # The start may be on the host.
        hosted = mofo_jax.distance_from_start(spread[0], whole[1], RULES)
    for other in (found, eager):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), other, expected
        )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), hosted, expected[2]
    )
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
