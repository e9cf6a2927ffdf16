"""Selection inside `jax.shard_map`, in which each device sees its own shards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mofo_jax
from tests.helpers import random_generator, selected


def moved_inside_shard_map(
    optimizer: Any, grads: Any, specs: Any, check_vma: bool = True, **axes: int
) -> Any:
    """Returns where the updates of a step are not zero.

    Args:
      optimizer: The optimizer.
      grads: The gradients.
      specs: The partition of the gradients.
      check_vma: Whether JAX tracks what is replicated.
      **axes: The lengths of the mesh axes; `x` of length 8 by default.
    """
    axes = axes or {"x": 8}
    kinds = (AxisType.Auto,) * len(axes)
    mapped = jax.shard_map(
        lambda grads: optimizer.update(grads, optimizer.init(grads))[0],
        mesh=jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds),
        in_specs=(specs,),
        out_specs=specs,
        check_vma=check_vma,
    )
    return jax.tree.map(lambda x: np.asarray(x) != 0, jax.jit(mapped)(grads))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shards_inside_shard_map_are_ranked_together(check_vma: bool) -> None:
    rng = random_generator()
    grads = {
        "sharded": rng.normal(size=(16, 12)).astype(np.float32),
        "replicated": rng.normal(size=10).astype(np.float32),
    }
    specs = {"sharded": P("x"), "replicated": P()}
    # If JAX tracks replication, one name works for all tensors.
    name = "x" if check_vma else mofo_jax.PathRules({"sharded": "x"}, default=())
    optimizer = mofo_jax.mofo(1e-2, axis_name=name)
    moved = moved_inside_shard_map(optimizer, grads, specs, check_vma)
    for tensor, gradient in grads.items():
        np.testing.assert_array_equal(moved[tensor], selected(gradient, 0.15))


def test_blocks_inside_shard_map_stay_apart() -> None:
    grads = np.float32(random_generator().normal(size=(8, 12)))
    # The other axis divides layers, which are blocks.
    optimizer = mofo_jax.mofo(1e-2, block_axes=(0,), axis_name="x")
    moved = moved_inside_shard_map(optimizer, grads, P("layers", "x"), layers=4, x=2)
    np.testing.assert_array_equal(moved, selected(grads, 0.15, (0,)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_searches_inside_shard_map_do_not_wait_for_each_other(check_vma: bool) -> None:
    # The layers need different numbers of passes, and each is on another device.
    normal = random_generator().normal(size=(9, 64))
    spread = np.geomspace(0.01, 20, 9)[:, None]
    embedding, layers = np.split(np.exp(spread * normal).astype(np.float32), [1])
    grads = {"embedding": embedding[0], "layers": layers}
    optimizer = mofo_jax.mofo(
        1e-2,
        block_axes={"embedding": (), "layers": (0,)},
        axis_name=mofo_jax.PathRules({"embedding": "x"}, default=()),
    )
    specs = {"embedding": P("x"), "layers": P("x")}
    moved = moved_inside_shard_map(optimizer, grads, specs, check_vma)
    for name, axes in (("embedding", ()), ("layers", (0,))):
        expected = selected(grads[name], 0.15, axes)
        np.testing.assert_array_equal(moved[name], expected)


@pytest.mark.parametrize("first", ["sharded", "replicated"])
@pytest.mark.parametrize("shared", [True, False])
def test_sharded_and_replicated_tensors_inside_shard_map(
    first: str, shared: bool
) -> None:
    rng = random_generator()
    specs = {"a": P("x"), "b": P()} if first == "sharded" else {"a": P(), "b": P("x")}
    grads = {name: rng.normal(size=32).astype(np.float32) for name in specs}
    options = {"block_axes": "model", "axis_name": "x"} if shared else {}
    optimizer = mofo_jax.mofo(1e-2, update_fraction=0.25, **options)
    moved = moved_inside_shard_map(optimizer, grads, specs)
    if shared:
        expected = selected(np.concatenate([grads["a"], grads["b"]]), 0.25)
        expected = dict(zip("ab", np.split(expected, 2), strict=True))
    else:  # Without a name, each shard is a block.
        shards = {name: 8 if spec == P("x") else 1 for name, spec in specs.items()}
        expected = {
            name: selected(grads[name].reshape(n, -1), 0.25, (0,)).ravel()
            for name, n in shards.items()
        }
    np.testing.assert_equal(moved, expected)


def test_random_scores_of_tensors_that_are_replicated_over_a_named_axis() -> None:
    optimizer = mofo_jax.mofo(
        1e-2, update_fraction=0.5, score="random", axis_name=("x", "y")
    )
    moved = moved_inside_shard_map(optimizer, jnp.ones(64), P("x"), x=4, y=2)
    assert moved.sum() == 32
    shards = moved.reshape(4, 16)
    assert len({shard.tobytes() for shard in shards}) == 4
