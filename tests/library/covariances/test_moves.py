"""Weights of positions that are moved, against NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mofo_jax
from tests.helpers import random_generator
from tests.library.covariances.hand import (
    Expected,
    check,
    mean_outer,
    normal,
    weighted,
)

ROWS, LENGTH, WIDTH = 3, 5, 4
X = normal(ROWS, LENGTH, WIDTH)
WEIGHTS = np.array(
    [[1.0, 0.5, 2.0, 0, 0], [0.25, 4.0, 0.0, 1.0, 2.0], [0, 0, 3.0, 1.0, 0]]
)
ORDER = random_generator(1).permutation(ROWS * LENGTH)
EACH = np.stack([random_generator(i).permutation(LENGTH) for i in range(ROWS)])
BACK = np.argsort(ORDER)


class Case(NamedTuple):
    """Moves of the positions of `X` or of `WEIGHTS`, which are equal in NumPy."""

    move: Callable[[Any], Any]
    desired: Callable[[Any], Any] | None = None


def flat(x: Any) -> Any:
    return x.reshape(-1, x.shape[-1])


CASES = {
    "rows": Case(lambda x: flat(x)[ORDER]),
    "twice": Case(lambda x: flat(x)[ORDER][ORDER[:7]]),
    "each row twice": Case(lambda x: flat(x)[np.repeat(ORDER, 2)]),
    "there and back": Case(lambda x: flat(x)[ORDER][BACK].reshape(x.shape)),
    "the same of every row": Case(lambda x: x[:, EACH[0]]),
    "along a row": Case(
        lambda x: jnp.take_along_axis(x, jnp.asarray(EACH)[..., None], axis=1),
        lambda x: np.take_along_axis(x, EACH[..., None], axis=1),
    ),
    "vmap": Case(
        lambda x: jax.vmap(lambda row, to: row[to])(x, jnp.asarray(EACH)),
        lambda x: np.take_along_axis(x, EACH[..., None], axis=1),
    ),
    "one of each row, in vmap": Case(
        lambda x: jax.vmap(lambda row, to: row[to])(x, jnp.asarray(EACH[:, 0])),
        lambda x: x[np.arange(ROWS), EACH[:, 0]],
    ),
    "of two axes": Case(lambda x: x[np.array([0, 2]), np.array([2, 3])]),
    # Only the rows that exist are inputs.
    "padded": Case(
        lambda x: lax.pad(flat(x), 1.0, ((1, 2, 1), (0, 0, 0)))[:-3], lambda x: flat(x)
    ),
    "cropped and padded": Case(
        lambda x: lax.pad(x, 1.0, ((0, 0, 0), (2, -1, 0), (0, 0, 0))),
        lambda x: x[:, :-1],
    ),
    "beyond the end": Case(
        lambda x: jnp.take(flat(x), jnp.array([3, 99, 1]), axis=0),
        lambda x: flat(x)[[3, 1]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_follow_a_move(name: str) -> None:
    move, desired = CASES[name]
    actual, report = weighted(move, X, WEIGHTS)
    x, weights = (desired or move)(X), (desired or move)(WEIGHTS[..., None])
    check(actual, {"w": Expected(mean_outer(x, weights=weights))})
    assert report == {"w": "contracted along (0,)"}


@pytest.mark.parametrize("where", ["plain", "checkpoint", "scan"])
def test_weights_follow_tokens_to_their_experts_and_back(where: str) -> None:
    router, up = normal(WIDTH, 3, seed=1), normal(3, WIDTH, 6, seed=2)
    params = {"up": up, "down": normal(3, 6, WIDTH, seed=3), "after": normal(WIDTH, 2)}

    def experts(params: Any, x: jax.Array) -> jax.Array:
        """Each token goes to two of three experts, as in common models."""
        scores = flat(x) @ router
        _, chosen = lax.top_k(scores, 2)
        order = jnp.argsort(chosen.reshape(-1))
        tokens = jnp.repeat(flat(x), 2, axis=0)[order]
        sizes = jnp.bincount(chosen.reshape(-1), length=3)
        hidden = jax.nn.relu(lax.ragged_dot(tokens, params["up"], sizes))
        out = lax.ragged_dot(hidden, params["down"], sizes)
        out = out[jnp.argsort(order)].reshape(*x.shape[:2], 2, WIDTH)
        return x + out.sum(2)

    def apply(params: Any, batch: Any) -> jax.Array:
        if where == "scan":
            x, _ = lax.scan(lambda x, _: (experts(params, x), None), batch[0], length=1)
        else:
            own = jax.checkpoint(experts) if where == "checkpoint" else experts
            x = own(params, batch[0])
        return x @ params["after"]

    actual, report = mofo_jax.input_covariances(
        apply,
        jax.tree.map(jnp.float32, params),
        [(jnp.float32(X), jnp.float32(WEIGHTS))],
        weights=lambda batch: batch[1],
        return_report=True,
    )
    x, weights = flat(X), WEIGHTS.reshape(-1)
    chosen = np.argsort(-(x @ router))[:, :2]
    own = [np.any(chosen == expert, axis=1) for expert in range(3)]
    hidden = np.maximum(np.einsum("nd,edf->enf", x, up), 0)
    out = x + sum(own[e][:, None] * (hidden[e] @ params["down"][e]) for e in range(3))
    ups = [mean_outer(x[rows], weights=weights[rows]) for rows in own]
    downs = [
        mean_outer(h[rows], weights=weights[rows])
        for h, rows in zip(hidden, own, strict=True)
    ]
    check(
        actual,
        {
            "up": Expected(np.stack(ups), (1,), (0,)),
            "down": Expected(np.stack(downs), (1,), (0,)),
            "after": Expected(mean_outer(out, weights=weights)),
        },
    )
    assert not any("not all known" in text for text in report.values())


def test_equal_moves_are_one_input() -> None:
    def apply(params: Any, x: jax.Array) -> Any:
        rows = flat(x)[ORDER]
        return [lax.pad(rows, 0.0, ((0, 3, 0), (0, 0, 0))) @ w for w in params]

    first, second = mofo_jax.input_covariances(
        apply,
        [jnp.ones((WIDTH, 2)), jnp.ones((WIDTH, 3))],
        [jnp.float32(X)],
        weights=lambda x: jnp.float32(WEIGHTS),
    )
    check({"w": first}, {"w": Expected(mean_outer(X, weights=WEIGHTS))})
    assert second.source == first.source == "0"
