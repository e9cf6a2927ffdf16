"""Weights of positions, which are followed to the inputs of products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(3, 5, 4)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]])
ANY = np.array([[1.0, 0.5, 2.0, 0, 0], [0.25, 4.0, 0.0, 1.0, 2.0], [0, 0, 3.0, 1.0, 0]])


def attention(params: Any, x: jax.Array) -> jax.Array:
    """Attention and a tanh, with positions on axes of several intermediate arrays."""
    q, k, v = (jnp.einsum("btd,dhk->bhtk", x, params[name]) for name in ("q", "k", "v"))
    scores = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", q, k))
    mixed = jnp.einsum("bhts,bhsk->bthk", scores, v)
    x = x + jnp.einsum("bthk,hkd->btd", mixed, params["out"])
    flat = jax.nn.relu(x.reshape(-1, 4) @ params["up"])
    return jnp.mean(flat.reshape(*x.shape[:2], -1), axis=1) @ params["head"]


def by_hand(params: Any, x: np.ndarray) -> dict[str, tuple[np.ndarray, tuple]]:
    """Returns the inputs of `attention`, and the axes over which they contract."""
    p = {name: np.asarray(w, np.float64) for name, w in params.items()}
    q, k, v = (np.einsum("btd,dhk->bhtk", x, p[name]) for name in ("q", "k", "v"))
    scores = np.exp(np.einsum("bhtk,bhsk->bhts", q, k))
    scores /= scores.sum(-1, keepdims=True)
    mixed = np.einsum("bhts,bhsk->bthk", scores, v)
    after = x + np.einsum("bthk,hkd->btd", mixed, p["out"])
    hidden = np.maximum(after @ p["up"], 0)
    return {
        **dict.fromkeys(("q", "k", "v"), (x, (0,))),
        "out": (mixed.reshape(*mixed.shape[:2], -1), (0, 1)),
        "up": (after, (0,)),
        "head": (hidden.mean(1), (0,)),
    }


@pytest.mark.parametrize("where", ["plain", "checkpoint in a scan"])
@pytest.mark.parametrize("weights", [MASK, 0.25 * MASK + 0.5], ids=["mask", "any"])
def test_weights_follow_positions(weights: np.ndarray, where: str) -> None:
    shapes = {
        "q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "out": (2, 3, 4), "up": (4, 5),
        "head": (5, 2),
    }  # fmt: skip
    params = {
        name: jnp.float32(normal(*shape, seed=i) / 2)
        for i, (name, shape) in enumerate(shapes.items())
    }

    def apply(params: Any, batch: Any) -> Any:
        if where == "plain":
            return attention(params, batch["x"])

        def body(x: jax.Array, _: None) -> Any:
            return x, jax.checkpoint(attention)(params, x)

        return lax.scan(body, batch["x"], length=1)

    batch = {"x": jnp.float32(X), "weights": jnp.float32(weights)}
    actual = mofo_jax.input_covariances(
        apply, params, [batch], weights=lambda batch: batch["weights"]
    )
    desired = {}
    for name, (x, axes) in by_hand(params, X).items():
        # An input without an axis of positions has the largest weight of its row.
        w = weights if name != "head" else weights.max(1)
        desired[name] = Expected(mean_outer(x, weights=w), axes)
    check(actual, desired)


LOOKUPS = {
    "gather": lambda table, tokens: table[tokens],
    "one-hot": lambda table, tokens: jax.nn.one_hot(tokens, len(table)) @ table,
}


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS.keys())
def test_weights_follow_a_lookup_a_slice_and_a_permutation(lookup: Any) -> None:
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    weights = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    table = normal(7, 4)

    def apply(params: Any, batch: Any) -> Any:
        x = lookup(params["table"], batch["tokens"])
        later = x[:, 1:]
        return x.swapaxes(0, 1) @ params["all"], later @ params["later"]

    params = {
        "table": jnp.float32(table),
        "all": jnp.ones((4, 4)),
        "later": jnp.ones((4, 4)),
    }
    batch = {"tokens": jnp.asarray(tokens), "weights": jnp.float32(weights)}
    actual = mofo_jax.input_covariances(
        apply, params, [batch], weights=lambda batch: batch["weights"]
    )
    x = table[tokens]
    check(
        actual,
        {
            "table": None,
            "all": Expected(mean_outer(x, weights=weights)),
            "later": Expected(mean_outer(x[:, 1:], weights=weights[:, 1:])),
        },
    )


def test_nothing_counts_where_all_weights_are_zero() -> None:
    actual = mofo_jax.input_covariances(
        lambda params, x: x @ params["w"],
        {"w": jnp.ones((4, 6))},
        [jnp.float32(X)],
        weights=lambda x: jnp.zeros((3, 5)),
    )
    check(actual, {"w": Expected(np.zeros((4, 4)))})


def test_the_report_says_where_positions_are_lost() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        flat = jnp.sort(x.reshape(-1, 4), axis=0)
        return flat @ params["sorted"], x @ params["plain"]

    params = {"plain": jnp.ones((4, 2)), "sorted": jnp.ones((4, 2))}
    tree, report = mofo_jax.input_covariances(
        apply,
        params,
        [jnp.float32(X)],
        weights=lambda x: jnp.float32(MASK),
        return_report=True,
    )
    assert report == {
        "plain": "contracted along (0,)",
        "sorted": "contracted along (0,), with positions that are not all known",
    }
    plain = Expected(mean_outer(X, weights=MASK))
    ordered = Expected(mean_outer(np.sort(X.reshape(-1, 4), axis=0)))
    check(tree, {"plain": plain, "sorted": ordered})


def test_weights_follow_rows_to_a_ragged_product() -> None:
    x, weights = normal(6, 4), np.array([1.0, 0.0, 2.0, 0.0, 0.5, 3.0])
    sizes = np.array([2, 1, 3])
    tree, report = mofo_jax.input_covariances(
        lambda params, x: lax.ragged_dot(x, params["w"], jnp.asarray(sizes)),
        {"w": jnp.ones((3, 4, 2))},
        [jnp.float32(x)],
        weights=lambda x: jnp.float32(weights),
        return_report=True,
    )
    groups = np.split(np.arange(6), np.cumsum(sizes)[:-1])
    desired = [mean_outer(x[rows], weights=weights[rows]) for rows in groups]
    check(tree, {"w": Expected(np.stack(desired), (1,), (0,))})
    assert report["w"] == "contracted along (1,), for each index of (0,)"


def test_products_along_positions() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        mixed = x.swapaxes(1, 2) @ params["mix"]
        flat = x.reshape(len(x), -1) @ params["flat"]
        return mixed, flat, jnp.einsum("btd,t->bd", x, params["pool"])

    params = {"mix": jnp.ones((5, 3)), "flat": jnp.ones((20, 2)), "pool": jnp.ones(5)}
    actual = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], weights=lambda x: jnp.float32(ANY)
    )
    largest = ANY.max(1)
    turned, each = X.swapaxes(1, 2), np.repeat(largest, 4)
    check(
        actual,
        {
            "mix": Expected(mean_outer(turned, weights=each)),
            "flat": Expected(mean_outer(X.reshape(3, -1), weights=largest)),
            "pool": Expected(mean_outer(turned, weights=each)),
        },
    )


MOVES: dict[str, tuple[Any, Any]] = {
    "scatter": (
        lambda x, to: jnp.zeros_like(x).at[to].set(x),
        lambda x, to: x[np.argsort(to)],
    ),
    "top_k": (lambda x, to: lax.top_k(x.T, 6)[0].T, lambda x, to: np.sort(x, axis=0)),
}


@pytest.mark.parametrize("name", MOVES)
def test_rows_that_are_moved_have_the_largest_weight(name: str) -> None:
    move, by_hand = MOVES[name]
    x, to = normal(6, 4), np.array([5, 4, 3, 2, 1, 0])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    tree, report = mofo_jax.input_covariances(
        lambda params, batch: move(*batch) @ params["w"],
        {"w": jnp.ones((4, 2))},
        [(jnp.float32(x), jnp.asarray(to))],
        weights=lambda batch: weights,
        return_report=True,
    )
    check(tree, {"w": Expected(mean_outer(by_hand(x, to)))})
    assert report["w"].endswith("with positions that are not all known")


def test_inputs_of_weight_zero_may_be_nan() -> None:
    x, weights = normal(6, 4), np.array([1.0, 2.0, 0.0, 1.0, 0.0, 1.0])
    x[2], x[4] = np.nan, np.inf

    def apply(params: Any, x: jax.Array) -> Any:
        grouped = lax.ragged_dot(x, params["grouped"], jnp.array([3, 3]))
        return grouped, x @ params["w"]

    actual = mofo_jax.input_covariances(
        apply,
        {"grouped": jnp.ones((2, 4, 2)), "w": jnp.ones((4, 2))},
        [jnp.float32(x)],
        weights=lambda x: jnp.float32(weights),
    )

    def expected(rows: slice) -> np.ndarray:
        some = weights[rows] > 0
        return mean_outer(x[rows][some], weights=weights[rows][some])

    groups = np.stack([expected(slice(3)), expected(slice(3, 6))])
    desired = Expected(groups, (1,), (0,)), Expected(expected(slice(6)))
    check(actual, dict(zip(("grouped", "w"), desired, strict=True)))


def test_a_batch_of_one_row_may_have_weights() -> None:
    rows = normal(3, 1, 4)
    weights = iter([0.5, 0.0, 2.0])
    batches = [(jnp.float32(row), jnp.full(1, next(weights))) for row in rows]
    actual = mofo_jax.input_covariances(
        lambda params, batch: (batch[0] @ params["w"], batch[0].sum(0) @ params["sum"]),
        {"w": jnp.ones((4, 2)), "sum": jnp.ones((4, 2))},
        batches,
        weights=lambda batch: batch[1],
    )
    expected = Expected(mean_outer(rows, weights=[0.5, 0.0, 2.0]))
    check(actual, {"w": expected, "sum": expected})
