"""Temporary memory and instructions of the compiled training step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import mofo_jax

# Parameters of 25 MB, compared with which a program's fixed memory is negligible.
SHAPES = {"stacked": (3, 768, 1024), "kernel": (2048, 1024), "embedding": (4099, 512)}
SIZE = 4 * (3 * 768 * 1024 + 2048 * 1024 + 4099 * 512)


def step(optimizer: Any, params: Any, state: Any, grads: Any) -> tuple:
    """Returns parameters and state in argument order, as donation requires."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def compiled(optimizer: optax.GradientTransformation) -> Any:
    """Returns the donated step of an optimizer, compiled for abstract arrays."""
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()
    }
    state = jax.eval_shape(optimizer.init, params)
    donated = jax.jit(functools.partial(step, optimizer), donate_argnums=(0, 1))
    return donated.lower(params, state, params).compile()


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10),
    reason="the XLA of jax 0.7.2 copies the momentum before the loop on the CPU",
)
@pytest.mark.parametrize("ties", ["all", "exact"])
@pytest.mark.parametrize("decay", ["selected", "all"])
def test_the_step_needs_no_copy_of_the_parameters_and_no_sort(
    ties: str, decay: str
) -> None:
    axes = {"stacked": (0,), "kernel": (), "embedding": ()}
    ours = compiled(
        mofo_jax.mofo(1e-3, weight_decay=0.1, decay=decay, ties=ties, block_axes=axes)
    )
    adamw = compiled(optax.adamw(1e-3, weight_decay=0.1))
    extra = (
        ours.memory_analysis().temp_size_in_bytes
        - adamw.memory_analysis().temp_size_in_bytes
    )
    assert extra < 0.05 * SIZE
    # Parameters and both moments are updated in place.
    aliased = ours.memory_analysis().alias_size_in_bytes
    assert aliased >= adamw.memory_analysis().alias_size_in_bytes >= 3 * SIZE
    text = ours.as_text()
    assert " while(" in text  # The program contains the search.
    assert " sort(" not in text
    assert "topk" not in text.lower()
