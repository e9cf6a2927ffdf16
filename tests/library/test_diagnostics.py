"""The diagnostics, against NumPy's float64 and their definitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax
from tests.helpers import (
    DTYPES,
    assert_raises,
    few,
    float32_zoo,
    random_generator,
    run,
    x64,
)

GROUPS = mofo_jax.PathRules(
    {"matrix|stacked": "wide", "nested": "deep"}, default="rest"
)


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def share(moved: np.ndarray) -> float:
    return np.count_nonzero(moved) / moved.size if moved.size else 0.0


def sparse(seed: int, like: Any) -> Any:
    """Returns updates that are mostly zero."""
    random = random_generator(seed)

    def update(leaf: jax.Array) -> jax.Array:
        values = random.normal(size=leaf.shape)
        return jnp.asarray(values * (random.random(leaf.shape) < 0.3), leaf.dtype)

    return jax.tree.map(update, like)


def moved_zoo() -> tuple[Any, Any]:
    """Returns the zoo's parameters after some updates, and before them."""
    start, _ = float32_zoo(0)
    return optax.apply_updates(start, sparse(1, start)), start


@pytest.fixture(params=["eager", "jit"])
def call(request: pytest.FixtureRequest) -> Any:
    """Calls a function of trees and static arguments, compiled or not."""

    def jitted(function: Any, *trees: Any, **static: Any) -> Any:
        return jax.jit(lambda *trees: function(*trees, **static))(*trees)

    return jitted if request.param == "jit" else lambda f, *a, **k: f(*a, **k)


def test_selected_share_of_every_kind_of_leaf(call: Any) -> None:
    updates = sparse(0, float32_zoo(0)[0])
    found = call(mofo_jax.selected_share, updates)
    assert jax.tree.structure(found) == jax.tree.structure(updates)
    for value, update in zip(jax.tree.leaves(found), arrays(updates), strict=True):
        assert (value.shape, value.dtype) == ((), jnp.float32)
        np.testing.assert_allclose(value, share(update != 0), rtol=1e-6)


@pytest.mark.parametrize("name", DTYPES)
def test_zero_is_zero_and_nothing_else_is(name: str) -> None:
    dtype = DTYPES[name]
    tiny = jnp.finfo(dtype).smallest_subnormal
    values = np.array([0.0, -0.0, tiny, -tiny, np.inf, np.nan, 1, 0], dtype)
    with x64(name == "float64"):
        assert mofo_jax.selected_share(values) == 5 / 8
        assert mofo_jax.mask_overlap(values, values) == 1
        assert mofo_jax.mask_overlap(values, np.roll(values, 1)) == 4 / 5


def test_selected_share_of_masks_and_complex_updates() -> None:
    assert mofo_jax.selected_share(np.array([True, False, False, True])) == 0.5
    assert mofo_jax.selected_share(jnp.array([1j, 0, 0, 0])) == 0.25
    assert mofo_jax.selected_share(jnp.array([3, 0])) == 0.5


def test_mofo_selects_its_fraction() -> None:
    start, gradients = few(3)
    optimizer = mofo_jax.mofo(1e-2, update_fraction=0.25, ties="exact")
    _, updates, _ = run(optimizer, start, gradients)
    found = mofo_jax.selected_share(updates[-1])
    assert found["matrix"] == 30 / 120
    assert found["heads"] == 24 / 96
    assert found["scalar"] == 1
    assert found["empty"] == 0
    assert found["nothing"] is None


def test_mask_overlap_of_consecutive_updates(call: Any) -> None:
    start, _ = float32_zoo(0)
    now, before = sparse(2, start), sparse(3, start)
    found = call(mofo_jax.mask_overlap, now, before)
    booleans = jax.tree.map(lambda update: update != 0, before)
    assert jax.tree.structure(found) == jax.tree.structure(now)
    kept = jax.tree.leaves(call(mofo_jax.mask_overlap, now, booleans))
    for value, again, new, old in zip(
        jax.tree.leaves(found), kept, arrays(now), arrays(before), strict=True
    ):
        moves = new != 0
        expected = share((old != 0)[moves])
        assert value.dtype == jnp.float32
        np.testing.assert_allclose([value, again], expected, rtol=1e-6)


def test_mask_overlap_of_nothing_is_zero() -> None:
    assert mofo_jax.mask_overlap(jnp.zeros(3), jnp.ones(3)) == 0
    assert mofo_jax.mask_overlap(jnp.ones(3), jnp.zeros(3)) == 0
    assert mofo_jax.mask_overlap(jnp.ones(0), jnp.ones(0)) == 0


def members(tree: Any, group: str) -> list[np.ndarray]:
    """Returns the leaves of a group of `GROUPS`, found by the text of their paths."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    names = {
        "wide": lambda path: "matrix" in path or "stacked" in path,
        "deep": lambda path: "nested" in path,
        "total": lambda _: True,
    }
    names["rest"] = lambda path: not (names["wide"](path) or names["deep"](path))
    return [
        np.asarray(leaf, np.float64)
        for path, leaf in pairs
        if names[group](jax.tree_util.keystr(path))
    ]


def test_shares_ever_moved_by_group(call: Any) -> None:
    params, start = moved_zoo()
    found = call(mofo_jax.ever_moved_share, params, start, rules=GROUPS)
    assert found.keys() == {"total", "wide", "deep", "rest"}
    for group, value in found.items():
        pairs = zip(members(params, group), members(start, group), strict=True)
        moved = np.concatenate([np.ravel(new != old) for new, old in pairs])
        assert (value.shape, value.dtype) == ((), jnp.float32)
        np.testing.assert_allclose(value, share(moved), rtol=1e-6)
    assert call(mofo_jax.ever_moved_share, params, start).keys() == {"total"}


@pytest.mark.parametrize("name", DTYPES)
def test_a_coordinate_has_moved_if_its_bits_changed(name: str) -> None:
    dtype = DTYPES[name]
    tiny = jnp.finfo(dtype).smallest_subnormal
    start = np.array([0.0, -0.0, np.nan, np.inf, 1, 1, 0, 2], dtype)
    params = np.array([-0.0, 0.0, np.nan, np.inf, 1, -1, tiny, 2], dtype)
    with x64(name == "float64"):
        assert mofo_jax.ever_moved_share(params, start)["total"] == 2 / 8


def test_integers_and_complex_numbers_move_too() -> None:
    found = mofo_jax.ever_moved_share(jnp.array([1, 2]), np.array([1, 3]))
    assert found["total"] == 0.5
    start = jnp.array([1 + 1j, 2, 3, 4])
    params = jnp.array([1 - 1j, 2, 4, 4])
    assert mofo_jax.ever_moved_share(params, start)["total"] == 0.5


def test_a_tree_without_tensors() -> None:
    for empty in ({}, {"nothing": None}, {"empty": jnp.zeros((0, 3))}):
        np.testing.assert_array_equal(
            mofo_jax.distance_from_start(empty, empty)["total"], (0, 0)
        )
        assert mofo_jax.ever_moved_share(empty, empty)["total"] == 0


def test_flax_nnx_trees_of_either_structure() -> None:
    """Flax NNX wraps leaves in the states before training and not after it."""
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    wrapped = nnx.state(model)
    bare = nnx.to_pure_dict(wrapped)
    moved = jax.tree.map(lambda leaf: leaf + 1, bare)
    rules = mofo_jax.PathRules({"kernel$": "kernel", "bias$": "bias"})
    for params in (moved, jax.tree.map(lambda leaf: leaf + 1, wrapped)):
        for start in (bare, wrapped, jax.tree.map(np.array, bare)):
            found = mofo_jax.distance_from_start(params, start, rules)
            np.testing.assert_allclose(found["bias"].distance, 2, rtol=1e-6)
            np.testing.assert_allclose(found["kernel"].distance, 12**0.5, rtol=1e-6)
            assert mofo_jax.ever_moved_share(params, start, rules)["kernel"] == 1
    shares = mofo_jax.selected_share(wrapped)
    assert jax.tree.structure(shares) == jax.tree.structure(wrapped)
    assert shares["kernel"][...] == 1


def test_counts_are_exact_beyond_float32() -> None:
    ones = np.ones((3, 2**23), bool)
    ones[0, :5] = False
    assert mofo_jax.selected_share(ones) == np.float32(1 - 5 / ones.size)
    assert mofo_jax.mask_overlap(ones, np.ones_like(ones)) == 1


def test_tensors_of_any_size_can_be_measured() -> None:
    """The stacked kernel of a 70B model is evaluated abstractly, by shape."""
    huge = {"up": jax.ShapeDtypeStruct((80, 8192, 28672), jnp.bfloat16)}
    for function in (mofo_jax.mask_overlap, mofo_jax.ever_moved_share):
        (value,) = jax.tree.leaves(jax.eval_shape(function, huge, huge))
        assert (value.shape, value.dtype) == ((), jnp.float32)


def test_counting_makes_no_copy_of_a_tensor() -> None:
    x = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    for function in (mofo_jax.mask_overlap, mofo_jax.ever_moved_share):
        memory: Any = jax.jit(function).lower(x, x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.01 * 4 * x.size


ERRORS: dict[str, tuple[Any, ...]] = {
    "shapes": (
        lambda: mofo_jax.mask_overlap({"w": jnp.ones(3)}, {"w": jnp.ones(4)}),
        "`previous_updates` for w must have the shape (3,), got (4,)",
    ),
    "leaves": (
        lambda: mofo_jax.ever_moved_share([jnp.ones(3)] * 2, [jnp.ones(3)]),
        "`start` must have a leaf for each of the 2 tensors, got 1",
    ),
    "no group": (
        lambda: mofo_jax.distance_from_start(
            *({"a": jnp.ones(3), "b": jnp.ones(3)},) * 2,
            mofo_jax.PathRules({"a": "a"}),
        ),
        "`rules` has no default and no rule for b",
    ),
    "a number as group": (
        lambda: mofo_jax.ever_moved_share(
            *({"a": jnp.ones(3)},) * 2, mofo_jax.PathRules({"a": 1})
        ),
        "`rules` for a must be a group's name, got 1",
    ),
    "total": (
        lambda: mofo_jax.ever_moved_share(
            *({"a": jnp.ones(3)},) * 2, mofo_jax.PathRules({"a": "total"})
        ),
        "`rules` must not name a group 'total'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raises(*ERRORS[name])
