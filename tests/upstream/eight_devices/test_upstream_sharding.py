"""Optax's sharding tests of the contribution, and its compiled step's collectives."""

import os

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from examples.upstream import entries, mofo
from tests.helpers import random_generator, selected
from tests.library.eight_devices.test_selection import (
    compiled_step,
    instructions,
    mesh_of,
    trees,
)
from tests.library.test_optax import run_body

# `contrib` gained a test after 0.2.8, which checks a subset of these.
BODIES = (
    "test_init_with_abstract_input",
    "test_state_sharding_type_init_match_update",
    "test_state_sharding_type_preserved_with_jit",
)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("entry", entries.SHARDING)
def test_sharding(entry: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # The module sets flags on import.
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
        upstream = pytest.importorskip("optax._src.sharding_test")
    # Optax 0.2.8 compares versions as strings and would skip the test on JAX 0.10.
    monkeypatch.setattr(jax, "__version__", "9")
    run_body(upstream.ShardingTest, name, optimizer=entries.SHARDING[entry])


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_any_sharding_selects_the_same_coordinates_without_gathering(kind: str) -> None:
    rng = random_generator()
    mesh = mesh_of(kind)
    tree = trees()[0]
    place = {name: NamedSharding(mesh, spec) for name, (*_, spec) in tree.items()}
    # Rounded, so that there are ties.
    host, start = (
        {
            name: rng.normal(size=shape).round(1).astype(np.float32)
            for name, (shape, *_) in tree.items()
        }
        for _ in range(2)
    )
    params, grads = jax.device_put(start, place), jax.device_put(host, place)
    optimizer = mofo.mofo(1e-2, weight_decay=0.1)
    with jax.set_mesh(mesh):
        compiled, state = compiled_step(optimizer, params, grads)
        after, new_state = compiled(params, state, grads)
    momenta = optax.tree.get(new_state, "mu")
    for name, gradient in host.items():
        moved = np.asarray(after[name]) != start[name]
        np.testing.assert_array_equal(moved, selected(gradient, 0.15) & (gradient != 0))
        for array in (after[name], momenta[name]):
            assert array.sharding.is_equivalent_to(place[name], array.ndim), name
    assert set(instructions(compiled)) == {"all-reduce"}
