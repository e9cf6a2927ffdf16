"""The inverse input covariance with other transformations, in states and trainers."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import mofo_jax
from mofo_jax import InputCovariance
from tests.helpers import (
    assert_same_bits,
    gradients_like,
    random_generator,
    run,
    selected,
    types,
    x64,
)

RULE = mofo_jax.scale_by_inverse_covariance


def covariance(n: int, *batch: int) -> jax.Array:
    x = random_generator().normal(size=(*batch, 4 * n, n)) * np.geomspace(1, 20, n)
    return jnp.asarray(np.swapaxes(x, -1, -2) @ x / (4 * n), jnp.float32)


PARAMS = {
    "bias": jnp.ones(3),
    "kernel": jnp.ones((8, 3)),
    "layers": jnp.ones((2, 4, 5)),
}
COVARIANCES = {
    "bias": None,
    "kernel": InputCovariance(covariance(8), (0,)),
    "layers": InputCovariance(covariance(4, 2), (1,), (0,)),
}


def inverse(params: Any) -> Any:
    """Multiplies updates by the inverses of `COVARIANCES` in NumPy."""

    def one(u: np.ndarray, a: Any) -> np.ndarray:
        a = np.asarray(a, np.float64)
        scale = 0.3 * np.trace(a) / len(a)
        return np.linalg.solve(np.eye(len(a)) + a / scale, np.asarray(u, np.float64))

    layers = zip(params["layers"], COVARIANCES["layers"].matrix, strict=True)
    return {
        "bias": np.asarray(params["bias"]),
        "kernel": one(params["kernel"], COVARIANCES["kernel"].matrix),
        "layers": np.stack([one(u, a) for u, a in layers]),
    }


def close(actual: Any, desired: Any) -> None:
    assert actual.keys() == desired.keys()
    for name, array in desired.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-5)


def test_mofo_in_front_selects_momenta_which_the_product_spreads() -> None:
    gradients = gradients_like(PARAMS, 3)
    mofo = mofo_jax.scale_by_mofo(update_fraction=0.2)
    both = run(optax.chain(mofo, RULE(COVARIANCES)), PARAMS, gradients)[1]
    alone = run(mofo, PARAMS, gradients)[1]
    for updates, before in zip(both, alone, strict=True):
        close(updates, inverse(before))
        moved = np.count_nonzero(before["kernel"], axis=0)
        assert 0 < moved.sum() < 8
        # A column moves as a whole if any of its coordinates was selected.
        spread = np.count_nonzero(updates["kernel"], axis=0)
        np.testing.assert_array_equal(spread, np.where(moved, 8, 0))


def test_a_filter_around_ranks_the_scaled_steps_and_leaves_the_rest() -> None:
    gradients = gradients_like(PARAMS, 3)
    inner = optax.chain(optax.scale_by_adam(), RULE(COVARIANCES))
    filtered = mofo_jax.momentum_filter(inner, update_fraction=0.25, score="update")
    actual = run(filtered, PARAMS, gradients)
    proposed = run(inner, PARAMS, gradients)[1]
    for updates, steps in zip(actual[1], proposed, strict=True):
        for name, step in steps.items():
            mask = selected(np.asarray(step), 0.25)
            np.testing.assert_array_equal(updates[name], np.where(mask, step, 0))
    # Coordinates that were never selected are unchanged, bit for bit.
    still = np.all([u["kernel"] == 0 for u in actual[1]], axis=0)
    assert 0 < still.sum() < still.size
    last = np.asarray(actual[0][-1]["kernel"])
    np.testing.assert_array_equal(last[still], np.ones(still.sum()))


def test_a_pull_to_the_start_behind_it_is_not_scaled() -> None:
    gradients = gradients_like(PARAMS, 2)
    members = RULE(COVARIANCES), mofo_jax.pull_to_start(0.5)
    actual = run(optax.chain(*members), PARAMS, gradients)[1]
    steps = [inverse(gradient) for gradient in gradients]
    close(actual[0], steps[0])
    expected = jax.tree.map(lambda first, second: second + 0.5 * first, *steps)
    close(actual[1], expected)


WRAPPERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "masked": lambda rule: optax.masked(
        rule, {"bias": False, "kernel": True, "layers": False}
    ),
    "partition": lambda rule: optax.partition(
        {"rule": rule, "none": optax.identity()},
        {"bias": "none", "kernel": "rule", "layers": "none"},
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_of_some_parameters_only(wrapper: str) -> None:
    optimizer = WRAPPERS[wrapper](RULE(COVARIANCES))
    (grads,) = gradients_like(PARAMS, 1)
    state = optimizer.init(PARAMS)
    updates, _ = jax.jit(optimizer.update)(grads, state, PARAMS)
    close(updates, {**grads, "kernel": inverse(grads)["kernel"]})


def test_injected_damping_and_one_compilation() -> None:
    inject = optax.inject_hyperparams(RULE, hyperparam_dtype=jnp.float32)
    optimizer = inject(COVARIANCES, damping=0.3, dtype="float32")
    state = optimizer.init(PARAMS)
    assert state.hyperparams.keys() == {"damping"}
    (grads,) = gradients_like(PARAMS, 1)
    updates, state = jax.jit(optimizer.update)(grads, state, PARAMS)
    close(updates, inverse(grads))


def test_the_placeholder_of_map_params() -> None:
    optimizer = optax.chain(optax.scale_by_adam(), RULE(COVARIANCES))
    state = optimizer.init(PARAMS)
    doubled = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    assert_same_bits(doubled[1], state[1])
    assert np.all(doubled[0].mu["kernel"] == 1)


def test_state_may_be_made_abstractly_or_filled_later() -> None:
    optimizer = RULE(COVARIANCES)
    state = optimizer.init(PARAMS)
    abstract_params = jax.eval_shape(lambda: PARAMS)
    made = jax.eval_shape(optimizer.init, PARAMS)
    assert types(made) == types(state)
    assert_same_bits(optimizer.init(abstract_params), state)
    template = RULE(jax.eval_shape(lambda: COVARIANCES))
    empty = template.init(PARAMS)
    assert types(empty) == types(state)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(empty))
    (grads,) = gradients_like(PARAMS, 1)
    assert_same_bits(
        template.update(grads, state, PARAMS), optimizer.update(grads, state, PARAMS)
    )


def test_the_state_may_be_donated_and_made_again() -> None:
    optimizer = RULE(COVARIANCES)
    update = jax.jit(optimizer.update, donate_argnums=1)
    state = optimizer.init(PARAMS)
    _, after = update(PARAMS, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert_same_bits(after, optimizer.init(PARAMS))


@pytest.mark.parametrize("rank", [None, 1])
def test_orbax_saves_and_restores_the_state(tmp_path: pathlib.Path, rank: Any) -> None:
    nested = {"layers": [{"kernel": PARAMS["kernel"]}, {"kernel": PARAMS["kernel"]}]}
    covariances = jax.tree.map(lambda _: COVARIANCES["kernel"], nested)
    optimizer = optax.chain(optax.scale_by_adam(), RULE(covariances, rank=rank))
    state = optimizer.init(nested)
    template = RULE(jax.eval_shape(lambda: covariances), rank=rank)
    empty = optax.chain(optax.scale_by_adam(), template).init(nested)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.save(tmp_path / "covariances", covariances)
        checkpointer.wait_until_finished()
        assert_same_bits(checkpointer.restore(tmp_path / "state", empty), state)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            covariances,
        )
        restored = checkpointer.restore(tmp_path / "covariances", abstract)
        assert_same_bits(restored, covariances)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.first = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(3, 2, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.tanh(self.first(x)))


def test_flax_nnx_trains_with_it() -> None:
    model = Model()
    graph, params = nnx.split(model, nnx.Param)
    x = jnp.asarray(random_generator().normal(size=(20, 8)), jnp.float32)
    covariances = mofo_jax.input_covariances(
        lambda params, x: nnx.merge(graph, params)(x), params, [x]
    )
    chain = optax.chain(
        optax.scale_by_adam(), RULE(covariances), optax.scale_by_learning_rate(0.1)
    )
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, x: jax.Array) -> Any:
        grads = nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)
        optimizer.update(model, grads)

    # The same training on plain arrays.
    pure = nnx.to_pure_dict(params)
    plain = optax.chain(
        optax.scale_by_adam(),
        RULE(nnx.to_pure_dict(covariances)),
        optax.scale_by_learning_rate(0.1),
    )
    state = plain.init(pure)
    for _ in range(3):
        grads = jax.grad(
            lambda p: jnp.sum(nnx.merge(graph, _state(params, p))(x) ** 2)
        )(pure)
        updates, state = plain.update(grads, state, pure)
        pure = optax.apply_updates(pure, updates)
        step(model, optimizer, x)
    actual = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for name in ("first", "second"):
        np.testing.assert_allclose(
            actual[name]["kernel"], pure[name]["kernel"], rtol=1e-4, atol=1e-6
        )


def _state(params: nnx.State, pure: Any) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, params)
    nnx.replace_by_pure_dict(state, pure)
    return state


def test_covariances_of_two_models_in_one_tree() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        return x @ params["a"], x @ params["b"]

    params = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 2))}
    batches = {
        name: jnp.float32(random_generator(seed).normal(size=(8, 4)))
        for seed, name in enumerate(("one", "two"))
    }
    covariances = {
        name: mofo_jax.input_covariances(apply, params, [x])
        for name, x in batches.items()
    }
    assert {c.source for tree in covariances.values() for c in tree.values()} == {"a"}
    optimizer = RULE(covariances)
    updates = dict.fromkeys(batches, params)
    state: Any = optimizer.init(updates)
    nested = jax.tree.structure({"one": {"a": 0}, "two": {"a": 0}})
    assert jax.tree.structure(state.factors) == nested
    actual, _ = optimizer.update(updates, state)
    without = {name: {"a": None, "b": c["b"]} for name, c in covariances.items()}
    abstract = jax.eval_shape(lambda: without)
    for some in (without, abstract):
        partly: Any = RULE(some).init(updates)
        assert jax.tree.structure(partly.factors) == nested
    for name in batches:
        own = RULE(covariances[name])
        desired, _ = own.update(params, own.init(params))
        assert_same_bits(actual[name], desired)


def test_kernels_without_numbers() -> None:
    covariances = {
        "out": InputCovariance(jnp.eye(4), (0,)),
        "in": InputCovariance(jnp.zeros((0, 0)), (0,)),
    }
    updates = {"out": jnp.ones((4, 0)), "in": jnp.ones((0, 3))}
    optimizer = mofo_jax.scale_by_inverse_covariance(covariances, block_size=2)
    actual, _ = optimizer.update(updates, optimizer.init(updates))
    assert_same_bits(actual, updates)


def test_low_rank_of_covariances_in_float64() -> None:
    step, made = jnp.ones((2, 8, 5), jnp.float32), []
    for dtype in ("float32", "float64"):
        with x64(dtype == "float64"):
            matrix = jnp.asarray(covariance(8, 2), dtype)
            optimizer = RULE(InputCovariance(matrix, (1,), (0,)), rank=2)
            made.append(optimizer.update(step, optimizer.init(step)))
    np.testing.assert_allclose(made[1][0], made[0][0], rtol=1e-4)
    assert types(made[1]) == types(made[0])
