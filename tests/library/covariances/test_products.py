"""Every form of a product, against covariances from NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax import lax

import mofo_jax
from tests.library.covariances.hand import Expected, check, mean_outer, normal

X = normal(3, 5, 4)
MEAN = mean_outer(X)
WIDE = normal(5, 12, seed=1)


class Case(NamedTuple):
    """A product of a parameter and a batch, and the parameter's covariance."""

    shape: tuple[int, ...]
    apply: Callable[[jax.Array, jax.Array], Any]
    expected: Expected
    batch: Any = X


def by_expert(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("ecd,edf->ecf", x, w)


def grouped(w: jax.Array, x: jax.Array) -> jax.Array:
    """Two kernels, each of which serves the three heads of its group."""
    repeated = jnp.broadcast_to(w[:, None], (2, 3, 4, 3)).reshape(6, 4, 3)
    return jnp.einsum("htd,hdk->thk", x, repeated)


def patches(x: np.ndarray, size: int) -> np.ndarray:
    """Returns the neighbouring rows that a convolution kernel of a size sees."""
    return np.stack([x[:, i : x.shape[1] - size + 1 + i] for i in range(size)], axis=2)


def convolve(w: jax.Array, x: jax.Array, **options: Any) -> jax.Array:
    spatial = x.ndim - 2
    numbers = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC")}[spatial]
    options = {"window_strides": (1,) * spatial, "padding": "VALID"} | options
    return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


IMAGES = normal(2, 4, 6, 3, seed=2)
TILES = IMAGES.reshape(2, 2, 2, 2, 3, 3).transpose(0, 1, 3, 2, 4, 5)
EXPERTS = normal(2, 5, 4, seed=3)
OF_EXPERTS = np.stack([mean_outer(x) for x in EXPERTS])
HEADS = normal(6, 5, 4, seed=4)
OF_GROUPS = np.stack([mean_outer(HEADS[:3]), mean_outer(HEADS[3:])])
ROWS = normal(7, 4, seed=5)
TIED = mean_outer(np.float32(normal(7, 4, seed=9))[[1, 2]])
PLAIN = Expected(MEAN)
PART = Expected(MEAN * np.outer([0, 1, 1, 0], [0, 1, 1, 0]))
EACH = Expected(np.stack([MEAN] * 3), (1,), (0,))
SECOND = Expected(MEAN * np.array([0, 1, 0])[:, None, None], (1,), (0,))
CASES = {
    "matrix product": Case((4, 6), lambda w, x: x @ w, PLAIN),
    "einsum": Case((4, 6), lambda w, x: jnp.einsum("btd,df->ftb", x, w), PLAIN),
    "kernel in front": Case((4, 6), lambda w, x: w.T @ x.reshape(15, 4).T, PLAIN),
    "out by in": Case((6, 4), lambda w, x: x @ w.T, Expected(MEAN, (1,))),
    "vector": Case((4,), lambda w, x: x @ w, PLAIN),
    "bfloat16": Case(
        (4, 6), lambda w, x: x.astype("bfloat16") @ w.astype("bfloat16"), PLAIN
    ),
    "scaled": Case((4, 6), lambda w, x: x @ (-2.0 * w / jnp.sqrt(4.0)), PLAIN),
    "integers": Case(
        (4, 6),
        lambda w, x: jnp.round(x).astype(int) @ w,
        Expected(mean_outer(np.round(X))),
    ),
    "behind a barrier": Case(
        (4, 6), lambda w, x: x @ lax.optimization_barrier((x, w))[1], PLAIN
    ),
    "axis of length 1": Case((1, 4, 6), lambda w, x: x @ w[0], Expected(MEAN, (1,))),
    "repeated for each row": Case(
        (4, 6), lambda w, x: x @ jnp.broadcast_to(w, (3, 4, 6)), PLAIN
    ),
    "repeated along the contracted axis": Case(
        (4, 6),
        lambda w, x: jnp.einsum("bthd,hdf->btf", x, jnp.broadcast_to(w, (2, 4, 6))),
        Expected(mean_outer(X.reshape(3, 5, 2, 2).repeat(2, -1).sum(2))),
        X.reshape(3, 5, 2, 2).repeat(2, -1),
    ),
    "heads out": Case((4, 2, 3), lambda w, x: jnp.einsum("btd,dhk->bhtk", x, w), PLAIN),
    "heads in": Case(
        (3, 4, 6),
        lambda w, x: jnp.einsum("thk,hkd->td", x, w),
        Expected(mean_outer(WIDE), (0, 1)),
        WIDE.reshape(5, 3, 4),
    ),
    "heads in, turned": Case(
        (6, 3, 4),
        lambda w, x: jnp.einsum("tkh,khd->td", x, w.transpose(2, 1, 0)),
        Expected(mean_outer(WIDE), (1, 2)),
        WIDE.reshape(5, 3, 4).swapaxes(1, 2),
    ),
    "heads in, flat": Case(
        (3, 4, 6),
        lambda w, x: x @ w.reshape(12, 6),
        Expected(mean_outer(WIDE), (0, 1)),
        WIDE,
    ),
    "a kernel cut into heads": Case(
        (12, 6),
        lambda w, x: jnp.einsum("kth,hkd->td", x, w.reshape(3, 4, 6)),
        Expected(mean_outer(WIDE)),
        WIDE.reshape(5, 3, 4).transpose(2, 0, 1),
    ),
    "three parts of one kernel": Case(
        (4, 9), lambda w, x: [x @ part for part in jnp.split(w, 3, axis=1)], PLAIN
    ),
    "halves of the contracted axis": Case(
        (4, 6),
        lambda w, x: x[..., :2] @ w[:2] + x[..., 2:] @ w[2:],
        Expected(MEAN * np.kron(np.eye(2), np.ones((2, 2)))),
    ),
    "a part of the contracted axis": Case(
        (4, 6), lambda w, x: x[..., 1:3] @ w[1:3], PART
    ),
    "a part of an axis that was cut": Case(
        (4, 6), lambda w, x: x[..., 1:3] @ w.reshape(2, 2, 6).reshape(4, 6)[1:3], PART
    ),
    "tiled": Case((4, 6), lambda w, x: x @ jnp.tile(w, (1, 2)), PLAIN),
    "unstacked": Case(
        (3, 4, 6), lambda w, x: [x @ own for own in jnp.unstack(w)], EACH
    ),
    "one-hot planes": Case(
        (40, 2),
        lambda w, x: jax.nn.one_hot((x > 0).astype(int), 2).reshape(3, 40) @ w,
        Expected(mean_outer(np.stack([X <= 0, X > 0], -1).reshape(3, 40))),
    ),
    "one index of an axis": Case((3, 4, 6), lambda w, x: x @ w[1], SECOND),
    "a run of one index": Case(
        (3, 4, 6), lambda w, x: jnp.einsum("btd,edf->btef", x, w[1:2]), SECOND
    ),
    "experts": Case((2, 4, 6), by_expert, Expected(OF_EXPERTS, (1,), (0,)), EXPERTS),
    "experts last": Case(
        (4, 6, 2),
        lambda w, x: by_expert(jnp.moveaxis(w, -1, 0), x),
        Expected(OF_EXPERTS, (0,), (2,)),
        EXPERTS,
    ),
    "all experts for every input": Case(
        (2, 4, 6), lambda w, x: jnp.einsum("btd,edf->btef", x, w), Expected(MEAN, (1,))
    ),
    "groups of heads": Case((2, 4, 3), grouped, Expected(OF_GROUPS, (1,), (0,)), HEADS),
    "ragged product": Case(
        (3, 4, 6),
        lambda w, x: lax.ragged_dot(x, w, jnp.array([2, 0, 5])),
        Expected(
            np.stack([mean_outer(ROWS[:2]), np.zeros((4, 4)), mean_outer(ROWS[2:])]),
            (1,),
            (0,),
        ),
        ROWS,
    ),
    "convolution of width 1": Case((1, 4, 6), convolve, Expected(MEAN, (1,))),
    "convolution": Case(
        (3, 4, 6),
        convolve,
        Expected(mean_outer(patches(X, 3).reshape(3, 3, 12)), (0, 1)),
    ),
    "convolutions of an ensemble": Case(
        (2, 3, 4, 6),
        lambda w, x: jax.vmap(convolve, (0, None))(w, x),
        Expected(mean_outer(patches(X, 3).reshape(3, 3, 12)), (1, 2)),
    ),
    "tiles of images": Case(
        (2, 3, 3, 5),
        lambda w, x: convolve(w, x, window_strides=(2, 3)),
        Expected(mean_outer(TILES.reshape(2, 2, 2, 18)), (0, 1, 2)),
        IMAGES,
    ),
    "tied embedding": Case(
        (7, 4),
        lambda w, x: (x, w[jnp.array([1, 2])] @ w.T)[1],
        Expected(TIED, (1,)),
    ),
}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_against_covariances_by_hand(name: str, jit: bool) -> None:
    case = CASES[name]

    def apply(params: Any, x: jax.Array) -> Any:
        call = jax.jit(case.apply) if jit else case.apply
        # Outputs that do not depend on the product must not interfere.
        return call(params["w"], x), params["unused"]

    params = {"w": jnp.float32(normal(*case.shape, seed=9)), "unused": jnp.ones(3)}
    covariances = mofo_jax.input_covariances(apply, params, [jnp.asarray(case.batch)])
    rtol = 1e-2 if name == "bfloat16" else 1e-5
    check(covariances, {"w": case.expected, "unused": None}, rtol)


def test_parts_of_a_kernel_with_different_numbers_of_inputs() -> None:
    x, once = normal(8, 16, 2), normal(8, 2, seed=1)

    def apply(w: jax.Array, batch: Any) -> jax.Array:
        x, once = batch
        return x @ w[:2] + (once @ w[2:])[:, None]

    batch = jnp.float32(x), jnp.float32(once)
    actual = mofo_jax.input_covariances(apply, jnp.ones((4, 3)), [batch])
    expected = scipy.linalg.block_diag(mean_outer(x), mean_outer(once))
    check({"": actual}, {"": Expected(expected)})


TOKENS = np.array([1, 2])


def unknown_index(x: jax.Array) -> jax.Array:
    """Returns an index that is known only when the program runs."""
    return x.astype(int)[0, 0, 0]


UNFIT: dict[str, tuple[tuple[int, ...], Callable[..., Any], str]] = {
    "lookup": ((7, 4), lambda w, x: w[TOKENS], "it is an operand of gather"),
    "lookup by one-hot vectors": (
        (7, 4),
        lambda w, x: jax.nn.one_hot(TOKENS, 7) @ w,
        "it is indexed by a product with one-hot vectors",
    ),
    "lookup by scaled and masked one-hot vectors": (
        (7, 4),
        lambda w, x: jnp.where(x[0, 0, 0] > 0, 2 * jax.nn.one_hot(TOKENS, 7), 0) @ w,
        "it is indexed by a product with one-hot vectors",
    ),
    "a reversed stack": (
        (3, 4, 6),
        lambda w, x: x @ lax.dynamic_index_in_dim(w[::-1], unknown_index(x), 0, False),
        "it is an operand of dynamic_slice",
    ),
    "elementwise": ((1, 1, 4), lambda w, x: x * w, "it is an operand of mul"),
    "sum of kernels": ((4, 6), lambda w, x: x @ (w + 1), "it is an operand of add"),
    "gram matrix": ((4, 6), lambda w, x: w.T @ w, "it is multiplied with a parameter"),
    "axis of length 1": (
        (1, 6),
        lambda w, x: x[..., :1] @ w,
        "its product contracts an axis of length 1",
    ),
    "backwards": (
        (4, 6),
        lambda w, x: x @ w[::-1],
        "indices of axis 0 are skipped or reversed",
    ),
    "every other row": (
        (8, 6),
        lambda w, x: x @ lax.slice_in_dim(w, 0, 8, 2),
        "indices of axis 0 are skipped or reversed",
    ),
    "a part of an axis": (
        (8, 6),
        lambda w, x: jnp.einsum("bthd,hdf->bthf", x[:, :, None], w.reshape(2, 4, 6)),
        "its product contracts only a part of axis 0",
    ),
    "grouped convolution": (
        (3, 1, 4),
        lambda w, x: convolve(w, x, feature_group_count=4),
        "it is the kernel of a grouped convolution",
    ),
    "complex input": ((4, 6), lambda w, x: (1j * x) @ w, "its input is complex"),
    "unknown before it runs": (
        (8, 6),
        lambda w, x: x @ lax.dynamic_slice(w, (unknown_index(x), 0), (4, 6)),
        "it is an operand of dynamic_slice",
    ),
    "nothing": ((4, 6), lambda w, x: x, "it is in no product"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_the_report_says_why_there_is_no_covariance(
    name: str,
) -> None:
    shape, call, reason = UNFIT[name]

    def apply(params: Any, x: jax.Array) -> Any:
        return call(params["w"], x), x @ params["other"]

    params = {"w": jnp.ones(shape), "other": jnp.ones((4, 2))}
    covariances, report = mofo_jax.input_covariances(
        apply, params, [jnp.float32(X)], return_report=True
    )
    assert covariances["w"] is None
    assert report["w"] == f"no covariance: {reason}"
    check({"other": covariances["other"]}, {"other": PLAIN})
