"""Weights of positions that a loop iterates over, or of which only a part is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

# Two rows of six positions, of which a half is read at a time.
SIX = normal(2, 6, 4)
SIX_WEIGHTS = np.array([[1.0, 0.5, 2.0, 0.0, 0.0, 3.0], [0.25, 4.0, 0.0, 1.0, 2.0, 0]])


def covariance_of(apply: Any) -> tuple[Any, str]:
    """Returns the covariances of a function of `SIX`, and the report of its kernel."""
    tree, report = mofo_jax.input_covariances(
        apply,
        {"w": jnp.ones((4, 3))},
        [jnp.float32(SIX)],
        weights=lambda x: jnp.float32(SIX_WEIGHTS),
        return_report=True,
    )
    return tree, report["w"]


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


def in_chunks(params: Any, x: jax.Array) -> Any:
    # Such as the logits of a loss over the merged positions of all rows.
    return lax.map(lambda some: some @ params["w"], x.reshape(-1, 2, 4))


def behind_chunks(params: Any, x: jax.Array) -> Any:
    mapped = lax.map(lambda some: 2 * some, x.reshape(-1, 3, 4))
    return mapped.reshape(2, 6, 4) / 2 @ params["w"]


def one_by_one(params: Any, x: jax.Array) -> Any:
    def step(carry: jax.Array, one: jax.Array) -> Any:
        return carry + one @ params["w"], None

    return lax.scan(step, jnp.zeros(3), x.reshape(-1, 4), reverse=True)


def in_chunks_of_chunks(params: Any, x: jax.Array) -> Any:
    def chunk(some: jax.Array) -> Any:
        return lax.map(lambda one: one @ params["w"], some)

    return lax.map(chunk, x.reshape(-1, 3, 4))


@pytest.mark.parametrize(
    "apply",
    [
        in_a_map, backwards, behind_a_map, in_two_loops, in_time, behind_time,
        rows_in_batches, in_chunks, behind_chunks, one_by_one, in_chunks_of_chunks,
    ],
)  # fmt: skip
def test_weights_follow_positions_that_a_loop_iterates_over(apply: Any) -> None:
    actual, report = covariance_of(apply)
    check(actual, {"w": Expected(mean_outer(SIX, weights=SIX_WEIGHTS))})
    assert report == "contracted along (0,)"


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
    tree, report = covariance_of(lambda params, x: part(halves(x)) @ params["w"])
    # The position in a half does not say which one it is.
    weights = np.broadcast_to(SIX_WEIGHTS.max(1, keepdims=True), (2, 3))
    x = by_hand(SIX.reshape(2, 2, 3, 4))
    check(tree, {"w": Expected(mean_outer(x, weights=weights))})
    assert report == "contracted along (0,), with positions that are not all known"


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
    tree, report = covariance_of(apply)
    check(tree, {"w": Expected(mean_outer(SIX[part]))})
    assert report.endswith("with positions that are not all known")


def test_a_carried_run_of_positions_is_not_that_of_the_iteration() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        def step(before: jax.Array, half: jax.Array) -> Any:
            return half, before @ params["w"]

        return lax.scan(step, jnp.zeros((2, 3, 4)), halves(x).swapaxes(0, 1))

    _, report = covariance_of(apply)
    assert report.endswith("with positions that are not all known")
