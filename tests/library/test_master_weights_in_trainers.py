"""Master weights within other transformations and trainers, and in checkpoints."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from mofo_jax import master_weights
from tests.helpers import assert_same_bits, gradients_like, run, types

EXACT = master_weights(optax.sgd(2.0**-10))


def kept(learning_rate: Any) -> optax.GradientTransformationExtraArgs:
    return master_weights(optax.adamw(learning_rate))


PARAMS = {"w": jnp.arange(1, 7, dtype="bfloat16").reshape(2, 3), "none": None}
GRADIENTS = gradients_like(PARAMS, 3)
OURS = kept(1e-3)
WRAPPED = {
    "finite": optax.apply_if_finite(OURS, 3),
    "accumulated": optax.MultiSteps(OURS, 1).gradient_transformation(),
    "injected": optax.inject_hyperparams(kept, hyperparam_dtype=jnp.float32)(1e-3),
    # Without a dtype, `inject_hyperparams` takes that of the first parameter, and 0.999
    # in bfloat16 is 1: with bfloat16 parameters alone, the step would be NaN.
    "injected inside": master_weights(optax.inject_hyperparams(optax.adamw)(1e-3)),
    "masked": optax.masked(OURS, {"w": True, "none": None}),
    "partitioned": optax.partition({"all": OURS}, {"w": "all", "none": None}),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_in_other_transformations(name: str) -> None:
    after, _, state = run(WRAPPED[name], PARAMS, GRADIENTS)
    desired, _, plain = run(OURS, PARAMS, GRADIENTS)
    assert_same_bits(after[-1], desired[-1])
    # An injected decay rate is rounded to float32 before it is subtracted from 1.
    np.testing.assert_allclose(
        optax.tree.get(state, "remainder")["w"], plain.remainder["w"], atol=1e-7
    )
    assert np.all(plain.remainder["w"] != 0)


def test_accumulation_changes_nothing_between_emitted_steps() -> None:
    accumulated = optax.MultiSteps(EXACT, 2).gradient_transformation()
    update = jax.jit(accumulated.update)
    state = accumulated.init(PARAMS)
    _, state = update(GRADIENTS[0], state, PARAMS)
    assert not np.any(optax.tree.get(state, "remainder")["w"])
    updates, state = update(GRADIENTS[0], state, PARAMS)
    change = np.float64(updates["w"]) + np.float64(
        optax.tree.get(state, "remainder")["w"]
    )
    np.testing.assert_array_equal(change, -np.float64(GRADIENTS[0]["w"]) / 1024)


def test_an_nnx_optimizer_keeps_the_remainder() -> None:
    model = nnx.Linear(2, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    trainer = nnx.Optimizer(model, EXACT, wrt=nnx.Param)
    gradient = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model: nnx.Linear, trainer: nnx.Optimizer, gradient: Any) -> None:
        trainer.update(model, gradient)

    for _ in range(3):
        step(model, trainer, gradient)
    desired, _, state = run(EXACT, params, [params] * 3)
    assert_same_bits(nnx.to_pure_dict(nnx.state(model, nnx.Param)), desired[-1])
    remainder = nnx.to_pure_dict(nnx.state(trainer))["opt_state"]["remainder"]
    assert_same_bits(remainder["kernel"], state.remainder["kernel"])
    assert np.any(state.remainder["kernel"])


def test_orbax_restores_every_bit(tmp_path: pathlib.Path) -> None:
    params, gradients = {"w": PARAMS["w"]}, [{"w": g["w"]} for g in GRADIENTS]
    after, _, state = run(OURS, params, gradients)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", (after[-1], state))
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda p: (p, OURS.init(p)), params)
        restored = checkpointer.restore(tmp_path / "state", abstract)
    assert_same_bits(restored, (after[-1], state))


def test_init_only_maps_and_map_params_finds_the_remainder() -> None:
    abstract = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "none": None}
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "none": None}
    state = OURS.init(params)
    assert types(OURS.init(abstract)) == types(state)
    assert types(jax.eval_shape(OURS.init, params)) == types(state)
    moved = optax.tree.map_params(OURS, lambda leaf: leaf + 1, state)
    for tree in (moved.remainder, *(optax.tree.get(moved, m) for m in ("mu", "nu"))):
        np.testing.assert_array_equal(tree["w"], np.ones((2, 3), np.float32))
    assert int(optax.tree.get(moved, "count")) == 0


def test_parameters_and_state_may_both_be_donated() -> None:
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "f": jnp.ones(4)}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = OURS.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    gradient = jax.tree.map(jnp.copy, params)
    params, state = step(params, OURS.init(params), gradient)
    params, state = step(params, state, gradient)
    assert int(optax.tree.get(state, "count")) == 2
