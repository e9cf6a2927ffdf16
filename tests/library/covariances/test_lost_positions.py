"""Weights of positions whose order is not known, and of pairs, against NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from tests.library.covariances.hand import (
    Expected,
    check,
    mean_outer,
    normal,
    weighted,
)

ROWS, LENGTH, WIDTH = 3, 6, 4
X = normal(ROWS, LENGTH, WIDTH)
WEIGHTS = np.array(
    [[1.0, 0.5, 2, 0, 0, 1], [0.25, 4, 0, 1, 2, 3], [0, 0, 3, 1, 0, 0.5]]
)
TURN = np.array([3, 5, 0, 1, 4, 2])
OTHER = np.array([1, 0, 2, 5, 3, 4])


def shifted(x: Any, by: int) -> Any:
    return lax.pad(x, 0.0, ((0, 0, 0), (by, -by, 0), (0, 0, 0)))


def scanned(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a scan of three steps."""
    return lambda x: lax.scan(lambda x, _: (step(x), None), x, length=3)[0]


def convolved(x: Any) -> Any:
    padded = jnp.pad(x, ((0, 0), (2, 0), (0, 0)))
    kernel = jnp.ones((3, WIDTH, WIDTH)) * 0.1
    return lax.conv_general_dilated(
        padded, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )


LOST: dict[str, Callable[[Any], Any]] = {
    "a branch moves": lambda x: lax.cond(x.sum() > 1e9, lambda x: x[:, TURN], id_, x),
    "a branch does not": lambda x: lax.cond(
        x.sum() > 1e9, id_, lambda x: x[:, TURN], x
    ),
    "each step reverses": scanned(lambda x: jnp.flip(jnp.tanh(x), 1)),
    "each step moves": scanned(lambda x: x[:, TURN]),
    "each step rolls": scanned(lambda x: jnp.roll(x, 1, axis=1)),
    "two halves": lambda x: (
        shifted(x, 3) + lax.pad(x, 0.0, ((0, 0, 0), (-3, 3, 0), (0, 0, 0)))
    ),
    "one of two orders": lambda x: jnp.where(
        jnp.arange(LENGTH)[:, None] > 2, x[:, TURN], x[:, OTHER]
    ),
    "one more position": lambda x: jnp.concatenate([x[:, :1] * 2, x], axis=1),
    "rolled": lambda x: jnp.roll(x, 2, axis=1),
    "convolved": convolved,
    "summed in windows": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 3, 1), (1, 1, 1), "VALID"
    ),
    "a window": lambda x: lax.dynamic_slice(x, (0, jnp.int32(2), 0), (3, 3, WIDTH)),
    "sorted": lambda x: jnp.sort(x, axis=1),
    "scattered": lambda x: jnp.zeros_like(x).at[:, TURN].set(x),
    "written in a loop": lambda x: lax.fori_loop(
        0,
        LENGTH,
        lambda t, made: lax.dynamic_update_slice_in_dim(
            made, lax.dynamic_slice_in_dim(x, t, 1, 1), t, 1
        ),
        jnp.zeros_like(x),
    ),
    "patches": lambda x: x.reshape(ROWS, 3, 2 * WIDTH),
    # `x[:, ::2]` is a gather in some versions of JAX.
    "every second": lambda x: sum(
        lax.slice_in_dim(x, start, LENGTH, 2, axis=1) for start in (0, 1)
    ),
    "summed from the left": lambda x: lax.associative_scan(jnp.add, x, axis=1),
}


def id_(x: Any) -> Any:
    return x


# Those of which not even the row is known.
ROWS_LOST = {
    *("a branch moves", "a branch does not", "each step moves", "two halves"),
    *("one of two orders", "convolved", "summed in windows"),
}


@pytest.mark.parametrize("name", LOST)
def test_lost_positions_have_the_largest_weight(name: str) -> None:
    actual, report = weighted(LOST[name], X, WEIGHTS)
    x = np.asarray(LOST[name](jnp.float32(X)))
    largest = WEIGHTS.max(None if name in ROWS_LOST else 1, keepdims=True)
    weights = np.broadcast_to(largest, x.shape[:2])
    check(actual, {"w": Expected(mean_outer(x, weights=weights))})
    assert report == {
        "w": "contracted along (0,), with positions that are not all known"
    }


class Known(NamedTuple):
    """A function of `X`, and the weights of its positions."""

    move: Callable[[Any], Any]
    weights: np.ndarray


def rotated(x: Any) -> tuple[Any, Any]:
    """Returns the halves of the pairs of a rotary embedding."""
    return x[..., ::2] - 2 * x[..., 1::2], x[..., ::2] + x[..., 1::2]


def interleaved(x: Any) -> Any:
    first, second = rotated(x)
    return jnp.zeros_like(x).at[..., ::2].set(first).at[..., 1::2].set(second)


def chosen(x: Any) -> Any:
    """Returns one of two scales of each row, by an index of the row."""
    both = jnp.stack([x, 2 * x], 2)
    return jax.vmap(lambda row, index: row[:, index])(both, jnp.array([0, 1, 0]))


def convolved_by_row(x: Any) -> Any:
    """Returns rows convolved with a kernel each."""

    def convolve(row: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            row[None],
            kernel,
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=WIDTH,
        )[0]

    return jax.vmap(convolve)(x, jnp.float32(normal(ROWS, 3, 1, WIDTH, seed=1)))


PAIRS = WEIGHTS[:, :, None] * WEIGHTS[:, None]
KNOWN = {
    "moved, with its row's mean": Known(
        lambda x: shifted(x, 2) + x.mean(1, keepdims=True),
        np.pad(WEIGHTS, ((0, 0), (2, 0)))[:, :LENGTH],
    ),
    "its row's mean, and moved": Known(
        lambda x: x.mean(1, keepdims=True) + x[:, TURN], WEIGHTS[:, TURN]
    ),
    "with itself moved": Known(lambda x: x[:, TURN] + x, WEIGHTS),
    "with itself reversed": Known(lambda x: jnp.flip(x, 1) + x, WEIGHTS),
    "with itself rolled": Known(lambda x: jnp.roll(x, 1, axis=1) + x, WEIGHTS),
    "the same in both branches": Known(
        lambda x: lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x), WEIGHTS
    ),
    "zero in a branch": Known(
        lambda x: lax.cond(x.sum() > 1e9, jnp.zeros_like, jnp.sin, x), WEIGHTS
    ),
    "stacked features": Known(
        lambda x: jnp.stack(rotated(x), -1).reshape(x.shape), WEIGHTS
    ),
    "stacked before the rows": Known(
        lambda x: jnp.stack([x, 2 * x]), np.stack([WEIGHTS] * 2)
    ),
    "written features": Known(interleaved, WEIGHTS),
    "a written run of features": Known(
        lambda x: jnp.zeros_like(x).at[..., 1:].set(x[..., 1:]), WEIGHTS
    ),
    "written rows": Known(
        lambda x: lax.dynamic_update_slice(jnp.zeros_like(x), x, (0, 0, 0)), WEIGHTS
    ),
    "one of two layers by row": Known(chosen, WEIGHTS),
    "convolved by row": Known(convolved_by_row, WEIGHTS),
    "pairs": Known(lambda x: x[:, :, None] + x[:, None], PAIRS),
    "pairs in a product": Known(
        lambda x: jnp.einsum("bqd,bkd->bqkd", x, x).swapaxes(1, 2), PAIRS
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_positions_have_their_weights(name: str) -> None:
    actual, report = weighted(KNOWN[name].move, X, WEIGHTS)
    x = np.asarray(KNOWN[name].move(jnp.float32(X)))
    check(actual, {"w": Expected(mean_outer(x, weights=KNOWN[name].weights))})
    assert report == {"w": "contracted along (0,)"}


# Padding, which is no position, has the weight 0.
@pytest.mark.parametrize(
    "name", sorted({*LOST, *KNOWN} - {"moved, with its row's mean"})
)
def test_equal_weights_do_not_matter(name: str) -> None:
    move = LOST[name] if name in LOST else KNOWN[name].move
    x = np.asarray(move(jnp.float32(X)))
    actual, _ = weighted(move, X, np.ones_like(WEIGHTS))
    check(actual, {"w": Expected(mean_outer(x))})


# A product of each with `w`.
UNKNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "positions and other rows": lambda x, w: (x[:, :, None] + x.max(1)[None, None]) @ w,
    "a run of all positions, in a loop": lambda x, w: lax.map(
        lambda one: one @ w, x.reshape(-1, WIDTH)[:5]
    ),
    "a single row, padded": lambda x, w: jnp.pad(x, ((0, 1), (0, 0), (0, 0))) @ w,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_report_says_that_positions_are_ambiguous_or_lost(name: str) -> None:
    rows = 1 if "single" in name else ROWS
    _, report = mofo_jax.input_covariances(
        lambda params, batch: UNKNOWN[name](batch[0], params["w"]),
        {"w": jnp.ones((WIDTH, 2))},
        [(jnp.float32(X[:rows]), jnp.float32(WEIGHTS[:rows]))],
        weights=lambda batch: batch[1],
        return_report=True,
    )
    assert report == {
        "w": "contracted along (0,), with positions that are not all known"
    }
