"""Merging of weights before and after training, against definitions in NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from mofo_jax._selection.patterns import magnitude_patterns
from mofo_jax.baselines import _merging
from mofo_jax.baselines._merging import interpolate_weights, prune_difference
from tests.helpers import (
    ZOO_BLOCK_AXES,
    assert_raises,
    assert_same_bits,
    blocks,
    how_many,
    is_shape,
    random_generator,
    types,
    x64,
    zoo_params,
)

# Few tensors of the zoo, since the selection compiles for each shape.
AXES = {
    name: ZOO_BLOCK_AXES[name]
    for name in ("matrix", "heads", "scalar", "empty", "nothing", "masked")
}


def before_and_after(dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Returns parameters before and after training that changes them by a tenth."""
    start, end = ({name: zoo_params(i)[name] for name in AXES} for i in range(2))
    end = jax.tree.map(lambda s, e: s + 0.1 * e, start, end)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (start, end))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_interpolation(share: float, dtype: str) -> None:
    start, end = before_and_after(dtype)
    actual = interpolate_weights(start, end, share)
    traced = jax.jit(interpolate_weights)(start, end, jnp.float32(share))
    assert types(actual) == types(traced) == types(end)
    if share in (0, 1):
        assert_same_bits(actual, end if share else start)
        assert_same_bits(traced, end if share else start)
    for a, t, s, e in zip(
        *map(jax.tree.leaves, (actual, traced, start, end)), strict=True
    ):
        expected = (1 - share) * np.float64(s) + share * np.float64(e)
        rounded = np.asarray(expected, dtype).astype(np.float64)
        tolerance = {"rtol": 1e-6 if dtype == "float32" else 1e-2, "atol": 1e-7}
        np.testing.assert_allclose(np.float64(a), rounded, **tolerance)
        np.testing.assert_allclose(np.float64(t), rounded, **tolerance)


def test_a_share_of_a_narrow_dtype_is_not_rounded() -> None:
    start, end = jnp.float32([1000.0]), jnp.float32([0.0])
    for dtype in ("bfloat16", "float16"):
        share = jnp.asarray(1e-3, dtype)
        expected = 1000 * (1 - np.float64(share))
        actual = interpolate_weights(start, end, share)
        np.testing.assert_allclose(actual, [expected], rtol=1e-6)


def test_a_tree_that_is_not_finite_can_be_left() -> None:
    finite, other = jnp.float32([1.0, 2.0]), jnp.float32([np.inf, np.nan])
    assert_same_bits(interpolate_weights(finite, other, 0.0), finite)
    assert_same_bits(interpolate_weights(other, finite, jnp.float32(1)), finite)


def scores(start: np.ndarray, end: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Returns the paper's score of every coordinate, in float64."""
    change, size = np.abs(end - start), np.abs(start)
    score = np.zeros(start.shape)
    for index in blocks(start.shape, axes):
        mean = np.mean(size[index]) if size[index].size else 0.0
        score[index] = change[index] - mean * (change[index] / size[index])
    return score


def expected_pruning(
    start: np.ndarray, end: np.ndarray, fraction: float, axes: tuple[int, ...]
) -> np.ndarray:
    """Returns the pruned tensor by sorting; it must have no ties."""
    start, end = (np.asarray(x, np.float64) for x in (start, end))
    score, expected = scores(start, end, axes), start.copy()
    for index in blocks(start.shape, axes):
        if start[index].size:
            k = how_many(fraction, start[index].size)
            kept = score[index] >= np.sort(np.ravel(score[index]))[-k]
            expected[index] = np.where(kept, end[index], start[index])
    return expected


@pytest.mark.parametrize(
    ("dtype", "ties", "jit"),
    [("float32", "all", False), ("bfloat16", "exact", True)],
)
def test_pruning_keeps_the_largest_scores(dtype: str, ties: str, jit: bool) -> None:
    start, end = before_and_after(dtype)
    prune = functools.partial(prune_difference, block_axes=AXES, ties=ties)
    pruned = (jax.jit(prune) if jit else prune)(start, end, 0.3)
    assert types(pruned) == types(end)
    axes = jax.tree.leaves(AXES, is_leaf=is_shape)
    for actual, s, e, block_axes in zip(
        *map(jax.tree.leaves, (pruned, start, end)), axes, strict=True
    ):
        expected = expected_pruning(s, e, 0.3, block_axes)
        np.testing.assert_array_equal(np.asarray(actual, np.float64), expected)


def test_pruning_in_float64() -> None:
    with x64():
        start, end = (tree["matrix"] for tree in before_and_after(jnp.float64))
        kept = prune_difference(start, end, 0.2)
        assert kept.dtype == jnp.float64
        np.testing.assert_array_equal(kept, expected_pruning(start, end, 0.2, ()))


def test_a_fraction_of_one_keeps_all_and_a_tiny_one_keeps_one() -> None:
    start, end = before_and_after()
    assert_same_bits(prune_difference(start, end, 1.0), end)
    least = prune_difference(start, end, 1e-6)
    for actual, before in zip(*map(jax.tree.leaves, (least, start)), strict=True):
        assert np.count_nonzero(actual != before) == min(1, before.size)


def test_coordinates_that_moved_away_from_zero_rank_last() -> None:
    start = jnp.array([0.0, 1.0, 0.0, 1.5, 0.1])
    end = jnp.array([9.0, 1.1, 0.0, 1.6, 0.2])
    # The scores: -inf, 0.048, 0, 0.065 and -0.42.
    moved = []
    for fraction in (0.2, 0.4, 0.6, 0.8, 1.0):  # Traced, so compiled once.
        kept = prune_difference(start, end, jnp.float32(fraction))
        moved.append(np.flatnonzero(kept != start).tolist())
    assert moved == [[3], [1, 3], [1, 3], [1, 3, 4], [0, 1, 3, 4]]


def test_a_tensor_that_started_at_zero_is_ranked_by_its_change() -> None:
    start = {"factor": jnp.zeros(4), "same": jnp.zeros(3)}
    end = {"factor": jnp.array([1.0, -4.0, 2.0, -3.0]), "same": jnp.zeros(3)}
    kept = prune_difference(start, end, 0.5)
    np.testing.assert_array_equal(kept["factor"], [0.0, -4.0, 0.0, -3.0])
    np.testing.assert_array_equal(kept["same"], 0)


def test_ties() -> None:
    start, end = jnp.full(8, 2.0), jnp.full(8, 2.5)  # All scores are zero.
    assert np.all(prune_difference(start, end, 0.5) == end)
    exact = prune_difference(start, end, 0.5, ties="exact")
    np.testing.assert_array_equal(exact == end, [True] * 4 + [False] * 4)


def test_each_layer_has_its_own_mean_and_selection() -> None:
    rng = random_generator()
    start = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    start *= jnp.array([1e-2, 1.0, 1e2])[:, None, None]
    end = start + jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    rules = mofo_jax.PathRules({"^layers": (0,)}, default=())
    stacked = prune_difference(
        {"layers": start}, {"layers": end}, 0.2, block_axes=rules
    )
    alone = [prune_difference(s, e, 0.2) for s, e in zip(start, end, strict=True)]
    np.testing.assert_array_equal(stacked["layers"], alone)


def test_a_fraction_for_each_tensor() -> None:
    start, end = before_and_after()
    rules = mofo_jax.PathRules({"heads": 1.0}, default=0.1)
    kept = prune_difference(start, end, rules)
    np.testing.assert_array_equal(kept["heads"], end["heads"])
    assert np.count_nonzero(kept["matrix"] != start["matrix"]) == 12


def test_complex_weights() -> None:
    start = jnp.array([1 + 1j, 2 - 2j, 3j])
    end = jnp.array([1 + 1j, 2 - 3j, 3.5j])
    # Changes of 0, 1 and 0.5 and a mean of 2.41: scores of 0, 0.15 and 0.1.
    kept = prune_difference(start, end, 0.3)
    np.testing.assert_array_equal(kept, jnp.array([1 + 1j, 2 - 3j, 3j]))
    np.testing.assert_allclose(
        interpolate_weights(start, end, 0.5), [1 + 1j, 2 - 2.5j, 3.25j]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_magnitude_patterns_order_signed_numbers(dtype: str) -> None:
    with x64(dtype == "float64"):
        tiny = np.finfo(dtype).tiny
        ends = np.array([tiny, 1e-20, 1e-4, 1.0, np.finfo(dtype).max, np.inf], dtype)
        middle = np.sort(np.abs(random_generator().normal(size=50))).astype(dtype)
        positive = np.unique(np.concatenate([ends, middle]))
        ordered = np.concatenate([-positive[::-1], [0.0], positive]).astype(dtype)
        magnitudes = _merging._as_magnitude(jnp.asarray(ordered))
        patterns = np.asarray(magnitude_patterns(magnitudes))
        assert np.all(patterns[:-1] < patterns[1:])
        assert magnitudes.dtype == dtype


ONE = {"w": jnp.ones((2, 3))}
ERRORS: dict[str, tuple[Any, ...]] = {
    "share": (
        lambda: interpolate_weights(ONE, ONE, 1.5),
        "`share` must be in [0, 1], got 1.5",
    ),
    "structures": (
        lambda: interpolate_weights(ONE, {"v": jnp.ones((2, 3))}, 0.5),
        "`start` and `end` must have the same structure, got",
    ),
    "shapes": (
        lambda: prune_difference(ONE, {"w": jnp.ones((3, 2))}, 0.5),
        "`start` and `end` for w must have the same shape, got (2, 3) and (3, 2)",
    ),
    "integers": (
        lambda: interpolate_weights(ONE, {"w": jnp.ones((2, 3), jnp.int8)}, 0.5),
        "w must be of a floating-point or complex dtype, got int8",
        TypeError,
    ),
    "fraction": (
        lambda: prune_difference(ONE, ONE, 0.0),
        "`fraction` for w must be in (0, 1], got 0.0",
    ),
    "fraction of text": (
        lambda: prune_difference(ONE, ONE, "half"),
        "`fraction` for w must be a number in (0, 1], got 'half'",
    ),
    "ties": (
        lambda: prune_difference(ONE, ONE, 0.5, ties="some"),
        "`ties` must be 'all' or 'exact', got 'some'",
    ),
    "axes": (
        lambda: prune_difference(ONE, ONE, 0.5, block_axes=(3,)),
        "`block_axes` for w must be axes of a tensor with 2 dimensions",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raises(*ERRORS[name])
