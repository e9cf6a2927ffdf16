"""The inverse input covariance: its steps, in every form of the matrices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax import InputCovariance
from tests.helpers import assert_same_bits, gradients_like, random_generator, run, types

RULE = mofo_jax.scale_by_inverse_covariance


def covariance(n: int, *batch: int, seed: int = 0) -> np.ndarray:
    """Returns covariances of correlated inputs of very different scales."""
    rng = random_generator(seed)
    x = rng.normal(size=(*batch, 3 * n, n)) * np.geomspace(1, 30, n)
    x = x @ rng.normal(size=(n, n)) / np.sqrt(n) + 0.5
    return np.swapaxes(x, -1, -2) @ x / (3 * n)


def scaled(u: np.ndarray, a: np.ndarray, damping: float = 0.3) -> np.ndarray:
    """Returns an update [n, out] multiplied by the inverse, in float64."""
    n = len(a)
    mean = np.trace(a) / n
    return np.linalg.solve(np.eye(n) + a / (damping * mean), u)


def kept_blocks(a: np.ndarray, *lengths: int) -> np.ndarray:
    """Returns the matrix with everything outside of its diagonal blocks set to zero."""
    mask = np.zeros(a.shape)
    start = 0
    for length in lengths:
        mask[start : start + length, start : start + length] = 1
        start += length
    return a * mask


def as32(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


# The shape of each parameter, its contracted axes, and its stacked axes.
KERNELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "kernel": ((6, 5), (0,), ()),
    "embedding": ((7, 6), (1,), ()),
    "vector": ((6,), (0,), ()),
    "heads out": ((6, 3, 2), (0,), ()),
    "heads in": ((2, 3, 4), (0, 1), ()),
    "heads around": ((2, 4, 3), (0, 2), ()),
    "stacked": ((3, 6, 5), (1,), (0,)),
    "stacked on axis 1": ((6, 3, 5), (0,), (1,)),
    "experts in layers": ((2, 3, 6, 4), (2,), (0, 1)),
    "stacked heads in": ((2, 2, 3, 4), (1, 2), (0,)),
    "layers last": ((4, 6, 3), (1,), (2,)),
}


def problem() -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Returns covariances, updates, and updates scaled in NumPy."""
    covariances, updates, desired = {}, {}, {}
    for seed, (name, (shape, axes, batch_axes)) in enumerate(KERNELS.items()):
        batch = [shape[axis] for axis in batch_axes]
        n = int(np.prod([shape[axis] for axis in axes]))
        a = covariance(n, *batch, seed=seed)
        u = random_generator(seed).normal(size=shape)
        order = [*batch_axes, *axes]
        moved = np.moveaxis(u, order, range(len(order)))
        columns = moved.reshape(*batch, n, -1)
        result = np.empty(columns.shape)
        for index in np.ndindex(*batch):
            result[index] = scaled(columns[index], a[index])
        covariances[name] = InputCovariance(as32(a), axes, batch_axes)
        updates[name] = as32(u)
        desired[name] = np.moveaxis(
            result.reshape(moved.shape), range(len(order)), order
        )
    covariances |= {"norm": None, "nothing": None}
    updates |= {"norm": as32(np.ones(4)), "nothing": None}
    return covariances, updates, desired


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_the_step_is_multiplied_by_the_inverse(jit: bool) -> None:
    covariances, updates, desired = problem()
    optimizer = RULE(covariances)
    state = (jax.jit(optimizer.init) if jit else optimizer.init)(updates)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    actual, after = update(updates, state)
    for name, u in desired.items():
        np.testing.assert_allclose(actual[name], u, rtol=1e-4, atol=1e-5, err_msg=name)
    assert_same_bits(actual["norm"], updates["norm"])
    assert actual["nothing"] is None
    assert_same_bits(after, state)


@pytest.mark.parametrize("damping", [0.01, 1.0, 100.0])
def test_damping(damping: float) -> None:
    a = covariance(8)
    u = random_generator().normal(size=(8, 3))
    optimizer = RULE(InputCovariance(as32(a), (0,)), damping)
    actual, _ = optimizer.update(as32(u), optimizer.init(as32(u)))
    np.testing.assert_allclose(actual, scaled(u, a, damping), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_complex_updates(dtype: str, rtol: float) -> None:
    a, rng = covariance(6), random_generator()
    u = rng.normal(size=(6, 3)) + 1j * rng.normal(size=(6, 3))
    optimizer = RULE(InputCovariance(as32(a), (0,)), 1.0, dtype=dtype)
    actual, _ = optimizer.update(jnp.complex64(u), optimizer.init(jnp.complex64(u)))
    np.testing.assert_allclose(actual, scaled(u, a, 1.0), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("block_size", "lengths"),
    [
        (4, (4, 4, 4)),
        (5, (4, 4, 4)),
        (6, (6, 6)),
        (11, (6, 6)),
        (12, (12,)),
        (99, (12,)),
    ],
)
def test_blocks_of_equal_length(block_size: int, lengths: tuple[int, ...]) -> None:
    a, u = covariance(12), random_generator().normal(size=(12, 5))
    optimizer = RULE(InputCovariance(as32(a), (0,)), block_size=block_size)
    state = optimizer.init(as32(u))
    (factor,) = jax.tree.leaves(state)
    assert factor.size == sum(length**2 for length in lengths)
    actual, _ = optimizer.update(as32(u), state)
    # The damping is that of the whole matrix, since blocks keep the diagonal.
    desired = scaled(u, kept_blocks(a, *lengths))
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


def test_blocks_of_a_length_that_nothing_divides() -> None:
    a, u = covariance(11), random_generator().normal(size=(11, 5))
    optimizer = RULE(InputCovariance(as32(a), (0,)), block_size=4)
    actual, _ = optimizer.update(as32(u), optimizer.init(as32(u)))
    desired = scaled(u, kept_blocks(a, 4, 4, 3))
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


def low_rank(a: np.ndarray, rank: int) -> np.ndarray:
    """Returns the largest eigencomponents of a matrix, with its own diagonal."""
    values, vectors = np.linalg.eigh(a)
    largest = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    return largest + np.diag(np.maximum(np.diag(a) - np.diag(largest), 0))


@pytest.mark.parametrize("block_size", [None, 8])
def test_low_rank_and_diagonal(block_size: int | None) -> None:
    a, u = covariance(16), random_generator().normal(size=(16, 5))
    options = {"rank": 3, "block_size": block_size}
    optimizer = RULE(InputCovariance(as32(a), (0,)), **options)
    state = optimizer.init(as32(u))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 16 * 4
    actual, _ = optimizer.update(as32(u), state)
    kept = np.zeros((16, 16))
    for start in range(0, 16, block_size or 16):
        run = slice(start, start + (block_size or 16))
        kept[run, run] = low_rank(a[run, run], 3)
    np.testing.assert_allclose(actual, scaled(u, kept), rtol=1e-3, atol=1e-4)


def test_the_matrix_is_kept_if_the_rank_would_not_save_memory() -> None:
    a, u = InputCovariance(as32(covariance(6)), (0,)), jnp.ones((6, 2))
    assert_same_bits(RULE(a, rank=3).init(u), RULE(a).init(u))
    assert len(jax.tree.leaves(RULE(a, rank=2).init(u))) == 2


def test_matrices_in_bfloat16() -> None:
    a, u = covariance(64), random_generator().normal(size=(64, 5))
    optimizer = RULE(InputCovariance(as32(a), (0,)), dtype="bfloat16")
    state = optimizer.init(as32(u))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"bfloat16"}
    actual, _ = optimizer.update(as32(u), state)
    assert actual.dtype == jnp.float32
    error = np.linalg.norm(actual - scaled(u, a)) / np.linalg.norm(u)
    assert 1e-5 < error < 3e-3


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e5])
def test_matrices_in_float16_do_not_limit_the_range_of_updates(size: float) -> None:
    a = covariance(6)
    optimizer = RULE(InputCovariance(as32(a), (0,)), dtype="float16")
    u = size * random_generator().normal(size=(6, 5))
    actual, _ = optimizer.update(as32(u), optimizer.init(as32(u)))
    np.testing.assert_allclose(actual, scaled(u, a), rtol=5e-3, atol=2e-3 * size)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_covariances_of_half_precision(dtype: str) -> None:
    a = jnp.asarray(np.diag([2.0, 0.5, 4.0]), dtype)
    optimizer = RULE(InputCovariance(a, (0,)))
    u = random_generator().normal(size=(3, 5))
    actual, _ = optimizer.update(as32(u), optimizer.init(as32(u)))
    np.testing.assert_allclose(actual, scaled(u, np.asarray(a, float)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_updates_keep_their_dtype(dtype: str) -> None:
    covariances, updates, desired = problem()
    updates = jax.tree.map(lambda u: u.astype(dtype), updates)
    optimizer = RULE(covariances)
    actual, _ = jax.jit(optimizer.update)(updates, optimizer.init(updates))
    assert types(actual) == types(updates)
    kernel = np.asarray(actual["kernel"], np.float64)
    np.testing.assert_allclose(kernel, desired["kernel"], rtol=0.02, atol=0.02)


def test_an_input_that_is_always_zero_does_not_change_the_step() -> None:
    a = np.stack([covariance(4), np.zeros((4, 4))])
    u = as32(random_generator().normal(size=(2, 4, 3)))
    optimizer = RULE(InputCovariance(as32(a), (1,), (0,)))
    actual, _ = optimizer.update(u, optimizer.init(u))
    assert_same_bits(actual[1], u[1])
    assert np.all(np.linalg.norm(actual[0], axis=0) < np.linalg.norm(u[0], axis=0))


def test_parameters_with_one_input_share_a_matrix() -> None:
    def apply(params: Any, x: Any) -> Any:
        q, k = x @ params["q"], jnp.einsum("td,dhk->thk", x, params["k"])
        return jnp.tanh(q) @ params["out"], k

    params = {"k": jnp.ones((4, 3, 2)), "out": jnp.ones((6, 4)), "q": jnp.ones((4, 6))}
    x = as32(random_generator().normal(size=(9, 4)))
    covariances = mofo_jax.input_covariances(apply, params, [x])
    assert covariances["q"].matrix is covariances["k"].matrix
    optimizer = RULE(covariances)
    state = optimizer.init(params)
    assert {k: f.shape for k, f in state.factors.items()} == {
        "k": (4, 4),
        "out": (6, 6),
    }
    updates, _ = optimizer.update(params, state)
    alone = {k: dataclasses.replace(c, source="") for k, c in covariances.items()}
    apart = RULE(alone)
    state = apart.init(params)
    assert state.factors.keys() == params.keys()
    assert_same_bits(apart.update(params, state)[0], updates)


def test_the_inverse_of_a_models_own_inputs() -> None:
    """Compares the step with one computed from the model's inputs in NumPy."""
    x = random_generator(3).normal(size=(50, 4)) @ random_generator(4).normal(
        size=(4, 4)
    )
    params = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}

    def apply(params: Any, x: Any) -> Any:
        return x @ params["kernel"] + params["bias"][None]

    batches = [as32(x[:30]), as32(x[30:])]
    optimizer = RULE(mofo_jax.input_covariances(apply, params, batches))
    (grads,) = gradients_like(params, 1)
    updates, _ = optimizer.update(grads, optimizer.init(params))
    desired = scaled(np.asarray(grads["kernel"], np.float64), x.T @ x / 50)
    np.testing.assert_allclose(updates["kernel"], desired, rtol=1e-4, atol=1e-5)
    assert_same_bits(updates["bias"], grads["bias"])


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_the_product_lowers_the_cost_after_adam_and_not_before_it(
    correlation: float,
) -> None:
    """The cost of a step is u^T A u, for inputs whose coordinates differ in scale."""
    scale = np.geomspace(30, 1, 16)
    mixed = np.full((16, 16), correlation) + (1 - correlation) * np.eye(16)
    a = mixed * np.outer(scale, scale)
    rng = random_generator()
    inputs = rng.normal(size=(20, 4, 16)) @ np.linalg.cholesky(a).T
    gradients = [as32(x.T @ (rng.normal(size=(4, 8)) + 0.5)) for x in inputs]
    adam, rule = optax.scale_by_adam(eps=0.0), RULE(InputCovariance(as32(a), (0,)), 0.1)

    def cost(*members: optax.GradientTransformation) -> float:
        updates = run(optax.chain(*members), jnp.zeros((16, 8)), gradients)[1]
        u = np.asarray(updates[-1], np.float64)
        return np.sum(u * (a @ u)) / np.sum(u * u)

    alone, behind, before = cost(adam), cost(adam, rule), cost(rule, adam)
    assert behind < 0.06 * alone
    assert before > 10 * behind
    if not correlation:
        # With a diagonal matrix, Adam's normalization cancels the product completely.
        np.testing.assert_allclose(before, alone, rtol=1e-4)
