"""Behaviour of trainers and Optax's wrappers that users of MoFO should know.

Each test belongs to an entry of `examples/trainers/README.md`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import mofo_jax
from tests.helpers import assert_same_bits, random_generator, selected

PARAMS = {"w": jnp.ones((6, 7)), "b": jnp.ones(9)}


def gradients(dtype: str = "float32") -> dict[str, jax.Array]:
    """Returns gradients of the parameters."""
    rng = random_generator()
    return {n: jnp.asarray(rng.normal(size=p.shape), dtype) for n, p in PARAMS.items()}


FACTORIES: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "mofo": lambda: mofo_jax.mofo(1e-2, weight_decay=0.1),
    "decay of all": lambda: mofo_jax.mofo(
        optax.constant_schedule(1e-2), weight_decay=0.1, decay="all"
    ),
    "scale_by_mofo": mofo_jax.scale_by_mofo,
    "momentum_filter": lambda: mofo_jax.momentum_filter(optax.lion(1e-2)),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_update_accepts_keywords_and_extra_arguments(name: str) -> None:
    # EasyDeL passes all arguments by name; Levanter adds a loss and a function, and
    # MaxText a norm.
    optimizer, grads = FACTORIES[name](), gradients()
    state = optimizer.init(PARAMS)

    def by_keyword(updates: Any, state: Any) -> Any:
        extra = {"loss": jnp.float32(1), "grad_norm": 1.0, "obj_fn": lambda p: p}
        return optimizer.update(updates=updates, state=state, params=PARAMS, **extra)

    desired = jax.jit(optimizer.update)(grads, state, PARAMS)
    assert_same_bits(jax.jit(by_keyword)(grads, state), desired)


def test_masked_passes_the_gradients_of_other_tensors_through() -> None:
    grads = gradients()
    masked = optax.masked(mofo_jax.mofo(1e-2), {"w": True, "b": False})
    updates, _ = jax.jit(masked.update)(grads, masked.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["b"], grads["b"])
    groups = {"trained": mofo_jax.mofo(1e-2), "frozen": optax.set_to_zero()}
    parted = optax.partition(groups, {"w": "trained", "b": "frozen"})
    frozen, _ = jax.jit(parted.update)(grads, parted.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(frozen["b"], 0)
    np.testing.assert_array_equal(frozen["w"], updates["w"])


def test_flattening_makes_the_whole_model_one_block() -> None:
    params = {"small": jnp.zeros(10), "large": jnp.zeros(90)}
    grads = {"small": jnp.arange(1.0, 11.0), "large": jnp.arange(11.0, 101.0)}

    def moved(optimizer: optax.GradientTransformation) -> dict[str, int]:
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        return {name: int(np.count_nonzero(u)) for name, u in updates.items()}

    ours = mofo_jax.mofo(1e-2)
    assert moved(ours) == {"small": 1, "large": 13}
    assert moved(optax.flatten(ours)) == {"small": 0, "large": 15}


def test_an_injected_callable_becomes_a_schedule_unless_it_is_static() -> None:
    asked = []

    def dense(params: Any) -> Any:
        asked.append(params)
        return jax.tree.map(lambda p: jnp.ndim(p) < 2, params)

    def init(**options: Any) -> Any:
        injected = optax.inject_hyperparams(
            mofo_jax.mofo, hyperparam_dtype=jnp.float32, **options
        )
        optimizer = injected(1e-2, dense=dense)
        return optimizer, optimizer.init(PARAMS)

    _, state = init()
    assert "dense" in state.hyperparams
    # It was called with the step.
    assert [jnp.shape(given) for given in asked] == [()]
    optimizer, state = init(static_args=("dense",))
    assert "dense" not in state.hyperparams
    updates, _ = jax.jit(optimizer.update)(gradients(), state, PARAMS)
    counts = {name: int(np.count_nonzero(u)) for name, u in updates.items()}
    assert counts == {"w": 6, "b": 9}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_injected_float32_numbers_work_for_low_precision_parameters(dtype: str) -> None:
    # In bfloat16, a b2 of 0.999 would be 1, and the update 0 / 0.
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    optimizer = injected(1e-2)
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    grads = gradients(dtype)
    state = optimizer.init(params)
    assert float(state.hyperparams["b2"]) == np.float32(0.999)
    updates, _ = jax.jit(optimizer.update)(grads, state, params)
    for name, update in updates.items():
        moved = np.asarray(update, np.float32)
        assert np.isfinite(moved).all()
        np.testing.assert_array_equal(moved != 0, selected(grads[name], 0.15))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensors_without_a_gradient_stay_in_half_precision(dtype: str) -> None:
    # An eps of 1e-8 is 0 in float16, so that Adam's own direction is 0 / 0.
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    optimizer = mofo_jax.mofo(1e-2, weight_decay=0.1)
    zeros = optax.tree.zeros_like(params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    assert_same_bits(jax.tree.map(jnp.abs, updates), zeros)


def test_integer_parameters_are_an_error_as_with_adamw() -> None:
    params = {**PARAMS, "step": jnp.arange(3)}

    def loss(params: Any) -> jax.Array:
        return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"])

    grads = jax.grad(loss, allow_int=True)(params)
    assert grads["step"].dtype == jax.dtypes.float0
    for optimizer in (optax.adamw(1e-2), mofo_jax.mofo(1e-2)):
        with pytest.raises(TypeError):
            optimizer.update(grads, optimizer.init(params), params)


def test_an_nnx_optimizer_keeps_annotated_parameters_under_a_mesh() -> None:
    # The sharding could not be applied to a state with one scalar per parameter.
    mesh = jax.make_mesh((1,), ("x",), (AxisType.Auto,), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("x", None))
        model = nnx.Linear(4, 3, kernel_init=init, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, mofo_jax.mofo(1e-2), wrt=nnx.Param)
    state = nnx.state(optimizer)["opt_state"]
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(state)}
    assert shapes == {(), (4, 3), (3,)}
    metadata = model.kernel.get_metadata()
    assert ("x", None) in metadata.values()
    for moment in ("mu", "nu"):
        assert state[0][moment]["kernel"].get_metadata() == metadata
