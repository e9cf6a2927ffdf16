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


def test_weights_follow_a_lookup_a_slice_and_a_permutation() -> None:
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    weights = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    table = normal(7, 4)

    def apply(params: Any, batch: Any) -> Any:
        x = params["table"][batch["tokens"]]
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


# Two rows of six positions, of which a half is read at a time.
SIX = normal(2, 6, 4)
SIX_WEIGHTS = np.array([[1.0, 0.5, 2.0, 0.0, 0.0, 3.0], [0.25, 4.0, 0.0, 1.0, 2.0, 0]])


def halves(x: jax.Array) -> jax.Array:
    return x.reshape(2, 2, 3, 4)


def in_a_map(params: Any, x: jax.Array) -> Any:
    return lax.map(lambda half: half @ params["w"], halves(x).swapaxes(0, 1))


def backwards(params: Any, x: jax.Array) -> Any:
    def step(carry: jax.Array, half: jax.Array) -> Any:
        return carry + jnp.sum(half), half @ params["w"]

    return lax.scan(step, 0.0, halves(x).swapaxes(0, 1), reverse=True)


def behind_a_map(params: Any, x: jax.Array) -> Any:
    mapped = lax.map(lambda half: 2 * half, halves(x).swapaxes(0, 1))
    return mapped.swapaxes(0, 1).reshape(2, 6, 4) / 2 @ params["w"]


def in_two_loops(params: Any, x: jax.Array) -> Any:
    def row(row: jax.Array) -> Any:
        return lax.map(lambda half: half @ params["w"], row.reshape(2, 3, 4))

    return lax.map(row, x)


def in_time(params: Any, x: jax.Array) -> Any:
    def step(carry: jax.Array, now: jax.Array) -> Any:
        return carry + now @ params["w"], None

    return lax.scan(step, jnp.zeros((2, 3)), x.swapaxes(0, 1))


def behind_time(params: Any, x: jax.Array) -> Any:
    last, every = lax.scan(lambda _, now: (now, now), x[:, 0], x.swapaxes(0, 1))
    return every @ params["w"], last


def rows_in_batches(params: Any, x: jax.Array) -> Any:
    return lax.map(lambda row: row @ params["w"], x, batch_size=1)


@pytest.mark.parametrize(
    "apply",
    [
        in_a_map, backwards, behind_a_map, in_two_loops, in_time, behind_time,
        rows_in_batches,
    ],
)  # fmt: skip
def test_weights_follow_positions_that_a_loop_iterates_over(apply: Any) -> None:
    actual, report = mofo_jax.input_covariances(
        apply,
        {"w": jnp.ones((4, 3))},
        [jnp.float32(SIX)],
        weights=lambda x: jnp.float32(SIX_WEIGHTS),
        return_report=True,
    )
    check(actual, {"w": Expected(mean_outer(SIX, weights=SIX_WEIGHTS))})
    assert report == {"w": "contracted along (0,)"}


def test_rows_in_larger_batches_have_their_weights() -> None:
    x, weights = normal(6, 4), np.array([1.0, 0.0, 2.0, 0.0, 0.0, 3.0])
    actual = mofo_jax.input_covariances(
        lambda params, x: lax.map(lambda row: row @ params["w"], x, batch_size=2),
        {"w": jnp.ones((4, 3))},
        [jnp.float32(x)],
        weights=lambda x: jnp.float32(weights),
    )
    check(actual, {"w": Expected(mean_outer(x, weights=weights))})


@pytest.mark.parametrize(
    ("part", "by_hand"),
    [
        (lambda halves: halves.mean(1), lambda x: x.mean(1)),
        (lambda halves: halves[:, 1], lambda x: x[:, 1]),
        (lambda halves: lax.fori_loop(
            0, 2, lambda i, x: x + lax.dynamic_index_in_dim(halves, i, 1, False),
            jnp.zeros((2, 3, 4))), lambda x: x.sum(1)),
    ],
    ids=["mean", "index", "loop"],
)  # fmt: skip
def test_weights_of_a_part_of_the_positions_are_the_largest(
    part: Any, by_hand: Any
) -> None:
    tree, report = mofo_jax.input_covariances(
        lambda params, x: part(halves(x)) @ params["w"],
        {"w": jnp.ones((4, 3))},
        [jnp.float32(SIX)],
        weights=lambda x: jnp.float32(SIX_WEIGHTS),
        return_report=True,
    )
    # The position in a half does not say which one it is.
    weights = np.broadcast_to(SIX_WEIGHTS.max(1, keepdims=True), (2, 3))
    x = by_hand(SIX.reshape(2, 2, 3, 4))
    check(tree, {"w": Expected(mean_outer(x, weights=weights))})
    assert report["w"] == "contracted along (0,), with positions that are not all known"


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


def shifted(params: Any, x: jax.Array) -> Any:
    def step(carry: Any, both: Any) -> Any:
        return carry, both[1] @ params["w"]

    return lax.scan(step, 0, (x[:, 1:].swapaxes(0, 1), x[:, :-1].swapaxes(0, 1)))


def strided(params: Any, x: jax.Array) -> Any:
    every_second = lax.slice_in_dim(x, 0, 6, 2, axis=1)
    return lax.map(lambda now: now @ params["w"], every_second.swapaxes(0, 1))


def flipped(params: Any, x: jax.Array) -> Any:
    return lax.map(lambda now: now @ params["w"], lax.rev(x, (1,)).swapaxes(0, 1))


@pytest.mark.parametrize(
    ("apply", "part"),
    [
        (shifted, np.s_[:, :-1]),
        (strided, np.s_[:, ::2]),
        (flipped, np.s_[:, ::-1]),
    ],
)
def test_loops_with_unknown_positions_are_reported(apply: Any, part: Any) -> None:
    tree, report = mofo_jax.input_covariances(
        apply,
        {"w": jnp.ones((4, 3))},
        [jnp.float32(SIX)],
        weights=lambda x: jnp.float32(SIX_WEIGHTS),
        return_report=True,
    )
    check(tree, {"w": Expected(mean_outer(SIX[part]))})
    assert report["w"].endswith("with positions that are not all known")


def test_a_carried_run_of_positions_is_not_that_of_the_iteration() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        def step(before: jax.Array, half: jax.Array) -> Any:
            return half, before @ params["w"]

        return lax.scan(step, jnp.zeros((2, 3, 4)), halves(x).swapaxes(0, 1))

    _, report = mofo_jax.input_covariances(
        apply,
        {"w": jnp.ones((4, 3))},
        [jnp.float32(SIX)],
        weights=lambda x: jnp.float32(SIX_WEIGHTS),
        return_report=True,
    )
    assert report["w"].endswith("with positions that are not all known")


def test_products_along_positions() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        mixed = x.swapaxes(1, 2) @ params["mix"]
        flat = x.reshape(len(x), -1) @ params["flat"]
        return mixed, flat, jnp.einsum("btd,t->bd", x, params["pool"])

    params = {"mix": jnp.ones((6, 3)), "flat": jnp.ones((24, 2)), "pool": jnp.ones(6)}
    actual = mofo_jax.input_covariances(
        apply, params, [jnp.float32(SIX)], weights=lambda x: jnp.float32(SIX_WEIGHTS)
    )
    largest = SIX_WEIGHTS.max(1)
    turned, each = SIX.swapaxes(1, 2), np.repeat(largest, 4)
    check(
        actual,
        {
            "mix": Expected(mean_outer(turned, weights=each)),
            "flat": Expected(mean_outer(SIX.reshape(2, -1), weights=largest)),
            "pool": Expected(mean_outer(turned, weights=each)),
        },
    )
