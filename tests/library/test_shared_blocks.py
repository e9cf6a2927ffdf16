"""Blocks that are parts of an axis, and blocks that several tensors share."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax
from mofo_jax import AxisParts
from tests.helpers import random_generator, selected

SHAPES = {"a": (4, 6, 5), "b": (4, 7), "c": (4,), "d": (9, 2)}


def gradients(seed: int = 0, ties: bool = False) -> dict[str, np.ndarray]:
    """Returns a tree of random numbers, optionally with many ties."""
    rng = random_generator(seed)

    def make(shape: tuple) -> np.ndarray:
        if ties:
            return rng.integers(1, 4, shape).astype(np.float32)
        return (rng.normal(size=shape) ** 3).astype(np.float32)

    return {name: make(shape) for name, shape in SHAPES.items()}


def moved(tree: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """Returns where the first step of MoFO moves parameters."""
    optimizer = mofo_jax.mofo(1.0, **options)
    updates, _ = jax.jit(optimizer.update)(tree, optimizer.init(tree))
    return {name: np.asarray(update) != 0 for name, update in updates.items()}


def joint(
    tree: dict[str, np.ndarray], names: str, fraction: float, ties: str
) -> dict[str, np.ndarray]:
    """Returns the masks of tensors that form one block, by sorting."""
    whole = np.concatenate([tree[name].ravel() for name in names])
    mask = selected(whole, fraction, (), ties)
    parts = np.split(mask, np.cumsum([tree[name].size for name in names])[:-1])
    return {
        name: part.reshape(SHAPES[name])
        for name, part in zip(names, parts, strict=True)
    }


@pytest.mark.parametrize("ties", ["all", "exact"])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("fraction", [0.001, 0.15, 0.6])
def test_the_whole_model_is_one_block(fraction: float, equal: bool, ties: str) -> None:
    tree = gradients(1, equal)
    masks = moved(tree, update_fraction=fraction, block_axes="model", ties=ties)
    expected = joint(tree, "abcd", fraction, ties)
    for name in SHAPES:
        np.testing.assert_array_equal(masks[name], expected[name])


@pytest.mark.parametrize("ties", ["all", "exact"])
def test_groups_are_named_by_path(ties: str) -> None:
    tree = gradients(2, ties=True)
    rules = mofo_jax.PathRules({"[ac]": "first", "b": "second"}, default=())
    masks = moved(tree, update_fraction=0.3, block_axes=rules, ties=ties)
    expected = joint(tree, "ac", 0.3, ties) | joint(tree, "b", 0.3, ties)
    expected |= joint(tree, "d", 0.3, ties)
    for name in SHAPES:
        np.testing.assert_array_equal(masks[name], expected[name])


@pytest.mark.parametrize("ties", ["all", "exact"])
@pytest.mark.parametrize("equal", [False, True])
def test_each_layer_is_a_block_of_several_tensors(equal: bool, ties: str) -> None:
    tree = gradients(3, equal)
    rules = mofo_jax.PathRules({"[abc]": ("layer", 0)}, default=())
    masks = moved(tree, update_fraction=0.2, block_axes=rules, ties=ties)
    for layer in range(4):
        rows = {name: tree[name][layer] for name in "abc"}
        whole = np.concatenate([np.ravel(row) for row in rows.values()])
        expected = selected(whole, 0.2, (), ties)
        found = np.concatenate([np.ravel(masks[name][layer]) for name in "abc"])
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(masks["d"], selected(tree["d"], 0.2, (), ties))


def test_tensors_of_different_precision_compete() -> None:
    tree = gradients(4)
    tree["b"] = np.asarray(jnp.asarray(tree["b"], jnp.bfloat16))
    masks = moved(tree, update_fraction=0.2, block_axes="model", score="gradient")
    wide = {name: np.asarray(x, np.float32) for name, x in tree.items()}
    expected = joint(wide, "abcd", 0.2, "all")
    for name in SHAPES:
        np.testing.assert_array_equal(masks[name], expected[name])


@pytest.mark.parametrize(
    ("axes", "shape", "split"),
    [
        ((AxisParts(1, 3),), (4, 6, 5), ((4, 3, 2, 5), (1,))),
        ((0, AxisParts(1, 2)), (4, 6, 5), ((4, 2, 3, 5), (0, 1))),
        ((AxisParts(0, 2), AxisParts(2, 5)), (4, 6, 5), ((2, 2, 6, 5, 1), (0, 3))),
        ((AxisParts(-1, 1),), (4, 6), ((4, 1, 6), (1,))),
    ],
)
@pytest.mark.parametrize("ties", ["all", "exact"])
def test_an_axis_is_cut_into_blocks(
    axes: tuple, shape: tuple, split: tuple, ties: str
) -> None:
    x = (random_generator().normal(size=shape) ** 3).astype(np.float32)
    masks = moved({"x": x}, update_fraction=0.3, block_axes=axes, ties=ties)
    cut, block_axes = split
    expected = selected(x.reshape(cut), 0.3, block_axes, ties).reshape(shape)
    np.testing.assert_array_equal(masks["x"], expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"block_axes": (AxisParts(1, 4),)},
            "axis 1, of length 6, into equal parts, got 4",
        ),
        ({"block_axes": (1, AxisParts(1, 2))}, "must list each axis only once"),
        ({"block_axes": ("x", 0)}, "block 'x' must have the same lengths"),
        (
            {
                "block_axes": "all",
                "update_fraction": mofo_jax.PathRules({"b": 0.2}, default=0.3),
            },
            "block 'all' must have the same `update_fraction`, got 0.3 and 0.2",
        ),
    ],
)
def test_invalid_shared_or_divided_blocks(options: dict[str, Any], words: str) -> None:
    tree = {"a": np.ones((5, 6), np.float32), "b": np.ones((4, 6), np.float32)}
    with pytest.raises(ValueError, match=re.escape(words)):
        moved(tree, **options)


@pytest.mark.parametrize("value", ["", (AxisParts(1, 0),), (1.5,), (0, (1, 2))])
def test_invalid_blocks(value: Any) -> None:
    with pytest.raises(ValueError, match="`block_axes` must be a"):
        moved(gradients(), block_axes=value)


def test_explicit_shardings_of_shared_blocks_must_be_alike() -> None:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    optimizer = mofo_jax.mofo(0.1, block_axes=("layer", 0))
    with jax.set_mesh(mesh):
        kernel = jax.device_put(jnp.ones((4, 6)), NamedSharding(mesh, P("x")))
        scale = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, P(None, "x")))
        params = {"kernel": kernel, "scale": scale}
        words = (
            r"'layer' must have the same Explicit sharding .* \('x',\) and \(None,\)"
        )
        with pytest.raises(ValueError, match=words):
            jax.jit(optimizer.update)(params, optimizer.init(params))
