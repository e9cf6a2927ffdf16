"""Uses of a parameter that look like others, against NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(5, 8)
GRAPH = normal(6, 6, seed=1)
MASKS: dict[str, Callable[[Any], Any]] = {
    "a feature is set": lambda x: jnp.where(jnp.arange(8)[None] == 0, 1.0, x),
    "a feature is left": lambda x: x * (jnp.arange(8)[None] == 0),
    "a block is left": lambda x: (
        x * (jnp.arange(8)[None] // 3 == jnp.int32(x[0, 0]) % 2)
    ),
    "features of a truncated index are left": lambda x: (
        x * (lax.div(jnp.arange(8)[None], 3) == jnp.int32(x[0, 0]) % 2)
    ),
    "no diagonal": lambda x: jnp.where(jnp.eye(*x.shape, dtype=bool), 0, x),
}


@pytest.mark.parametrize("name", MASKS)
def test_an_input_that_is_masked_by_its_index_is_no_lookup(name: str) -> None:
    x = GRAPH if name == "no diagonal" else X
    actual = mofo_jax.input_covariances(
        lambda params, batch: MASKS[name](batch) @ params["w"],
        {"w": jnp.ones((x.shape[1], 2))},
        [jnp.float32(x)],
    )
    check(actual, {"w": Expected(mean_outer(MASKS[name](jnp.float32(x))))})


def test_where_makes_one_hot_vectors() -> None:
    tokens = jnp.array([[3, 1], [0, 6]])

    def apply(params: Any, batch: Any) -> Any:
        seen = jnp.where(batch[..., None] == jnp.arange(8)[None, None], 1.0, 0.0)
        return jnp.tanh(seen @ params["w"]) @ params["w"].T

    params = {"w": jnp.float32(normal(8, 3))}
    actual = mofo_jax.input_covariances(apply, params, [tokens])
    inputs = np.tanh(np.asarray(params["w"], np.float64)[np.asarray(tokens)])
    check(actual, {"w": Expected(mean_outer(inputs), (1,))})


@pytest.mark.parametrize(
    "columns",
    [
        lambda w, x: (x @ w[:, :11], x @ w[:, 11]),
        lambda w, x: [x @ part for part in jnp.split(w, [1, 11], axis=1)],
        lambda w, x: (x @ w[:, 2], x @ w),
    ],
    ids=range(3),
)
def test_a_single_column_has_the_input_of_the_others(columns: Any) -> None:
    actual = mofo_jax.input_covariances(
        lambda params, batch: columns(params["w"], batch),
        {"w": jnp.ones((8, 12))},
        [jnp.float32(X)],
    )
    check(actual, {"w": Expected(mean_outer(X))})


def test_single_layers_of_a_stack_have_separate_inputs() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        return jnp.tanh(x @ params["w"][0]) @ params["w"][2]

    params = {"w": jnp.float32(0.3 * normal(3, 8, 8, seed=2))}
    actual = mofo_jax.input_covariances(apply, params, [jnp.float32(X)])
    second = np.tanh(X @ np.asarray(params["w"][0], np.float64))
    matrices = np.stack([mean_outer(X), np.zeros((8, 8)), mean_outer(second)])
    check(actual, {"w": Expected(matrices, (1,), (0,))})


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_the_unit_of_weights_does_not_matter(scale: float) -> None:
    mask = np.array([1.0, 0, 2, 3, 0])
    actual = mofo_jax.input_covariances(
        lambda params, x: x @ params["w"],
        {"w": jnp.ones((8, 2))},
        [jnp.float32(X)],
        weights=lambda x: jnp.float32(scale * mask),
    )
    check(actual, {"w": Expected(mean_outer(X, weights=mask))})


def test_calls_of_a_composite_and_of_a_custom_vmap() -> None:
    @jax.custom_batching.custom_vmap
    def mapped(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    @mapped.def_vmap
    def rule(size: int, batched: Any, x: jax.Array, w: jax.Array) -> Any:
        del size, batched
        return x @ w, True

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    composite = lax.composite(product, name="test.product")
    actual = mofo_jax.input_covariances(
        lambda params, x: (mapped(x, params["one"]), composite(x, params["other"])),
        {"one": jnp.ones((8, 2)), "other": jnp.ones((8, 3))},
        [jnp.float32(X)],
    )
    check(actual, dict.fromkeys(("one", "other"), Expected(mean_outer(X))))


def test_the_report_names_a_product_in_the_condition_of_a_loop() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        def goes_on(carry: Any) -> Any:
            return jnp.sum(carry @ params["asked"]) > 1e9

        return lax.while_loop(goes_on, jnp.tanh, x) @ params["w"]

    params = {"asked": jnp.ones((8, 2)), "w": jnp.ones((8, 3))}
    tree, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], return_report=True
    )
    reason = "it is multiplied in the condition of a loop"
    assert report["asked"] == f"no covariance: {reason}"
    check(tree, {"asked": None, "w": Expected(mean_outer(X))})


def test_a_loop_within_vmap_has_no_covariance() -> None:
    # It runs until the last row's loop ends, with inputs of no other row's.
    def apply(params: Any, x: Any) -> Any:
        def row(x: Any) -> Any:
            def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
                return state[0] + 1, jnp.tanh(state[1] @ params["looped"])

            return lax.while_loop(lambda s: s[0] < jnp.abs(s[1]).max(), step, (0, x))[1]

        return jax.vmap(row)(x) @ params["w"]

    params = {"looped": jnp.ones((4, 4)), "w": jnp.ones((4, 2))}
    x = jnp.float32(normal(3, 4))
    actual, report = mofo_jax.input_covariances(apply, params, [x], return_report=True)
    identity = {"looped": params["looped"], "w": jnp.eye(4)}
    check(actual, {"looped": None, "w": Expected(mean_outer(apply(identity, x)))})
    reason = "it is multiplied in a loop whose length `vmap` makes differ"
    assert report["looped"] == f"no covariance: {reason}"


def test_only_products_whose_results_are_used_count() -> None:
    x = jnp.float32(normal(3, 4))
    actual = mofo_jax.input_covariances(
        lambda params, x: ((2 * x) @ params["w"], x @ params["w"])[1],
        {"w": jnp.ones((4, 2))},
        [x],
    )
    check(actual, {"w": Expected(mean_outer(x))})
