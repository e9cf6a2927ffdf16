"""Selection under any sharding, and the collectives of the compiled step."""

import collections
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax
from mofo_jax._selection.patterns import rank_magnitudes
from mofo_jax._selection.tpu_layout import in_memory_order
from tests.helpers import random_generator, selected

MESH_TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
MATRIX = [P("a", None), P(None, "a"), P("a", "b"), P(("a", "b"), None)]
MATRIX += [P(None, ("a", "b")), P()]
STACKED = [P("a", None, "b"), P(None, "a", "b"), P(None, ("b", "a"), None)]
COLLECTIVES = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|sort|topk)"
    r"(?:-start)?\("
)


def mesh_of(kind: str) -> jax.sharding.Mesh:
    """Returns a mesh of eight devices, 4 by 2."""
    types = (MESH_TYPES[kind],) * 2
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=types)


def train_step(optimizer: Any, params: Any, state: Any, grads: Any) -> tuple:
    """Returns parameters and state in argument order, as donation requires."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def compiled_step(optimizer: Any, params: Any, grads: Any) -> tuple[Any, Any]:
    """Returns a compiled step with donation, and its initial state."""
    state = optimizer.init(params)
    step = jax.jit(functools.partial(train_step, optimizer), donate_argnums=(0, 1))
    return step.lower(params, state, grads).compile(), state


def instructions(compiled: Any) -> collections.Counter:
    """Counts the collectives and sorts in a compiled program."""
    return collections.Counter(COLLECTIVES.findall(compiled.as_text()))


Case = tuple[tuple[int, ...], tuple[int, ...], P]


def trees() -> list[dict[str, Case]]:
    """Returns trees of tensors: their shape, block axes and sharding.

    In a tree, all tensors with blocks of one shape have the same sharding, as in a
    model. Otherwise, an Auto mesh would gather their counts, one per block.
    """
    found: list[dict[str, Case]] = [{"small": ((10,), (), P())}]
    found[0] |= {str(spec): ((64, 48), (), spec) for spec in MATRIX}
    for axes in ((0,), (1,), (0, 1)):
        spreads = list(dict.fromkeys(tuple(spec[i] for i in axes) for spec in STACKED))
        found += [{} for _ in range(len(spreads) - len(found))]
        for spec in STACKED:
            tree = found[spreads.index(tuple(spec[i] for i in axes))]
            tree[f"{spec} by {axes}"] = ((8, 16, 24), axes, spec)
    return found


@pytest.mark.parametrize(
    ("kind", "ties"), [("auto", "all"), ("auto", "exact"), ("explicit", "exact")]
)
@pytest.mark.parametrize("tree", trees(), ids=("first", "second", "third"))
def test_any_sharding_moves_the_same_coordinates_and_gathers_nothing(
    tree: dict[str, Case], kind: str, ties: str
) -> None:
    rng = random_generator()
    mesh = mesh_of(kind)
    place = {name: NamedSharding(mesh, spec) for name, (*_, spec) in tree.items()}
    # Rounded, so that ties must be broken across devices.
    host, start = (
        {
            name: rng.normal(size=shape).round(1).astype(np.float32)
            for name, (shape, *_) in tree.items()
        }
        for _ in range(2)
    )
    params, grads = jax.device_put(start, place), jax.device_put(host, place)
    block_axes = {name: axes for name, (_, axes, _) in tree.items()}
    optimizer = mofo_jax.mofo(1e-2, block_axes=block_axes, ties=ties, weight_decay=0.1)
    with jax.set_mesh(mesh):
        compiled, state = compiled_step(optimizer, params, grads)
        after, new_state = compiled(params, state, grads)
    for name, axes in block_axes.items():
        expected = selected(host[name], 0.15, axes, ties) & (host[name] != 0)
        moved = np.asarray(after[name]) != start[name]
        np.testing.assert_array_equal(moved, expected, err_msg=name)
        for array in (after[name], new_state[0].mu[name], new_state[0].nu[name]):
            assert array.sharding.is_equivalent_to(place[name], array.ndim), name
    found = instructions(compiled)
    assert set(found) <= {"all-reduce"}, found


@pytest.mark.parametrize("ties", ["all", "exact"])
def test_collectives_do_not_grow_with_the_number_of_tensors(ties: str) -> None:
    mesh = mesh_of("auto")
    place = NamedSharding(mesh, P("a", "b"))

    def found(tensors: int) -> collections.Counter:
        params = [jax.device_put(np.ones((16, 8), np.float32), place)] * tensors
        params = [jnp.copy(param) for param in params]
        return instructions(
            compiled_step(mofo_jax.mofo(1e-2, ties=ties), params, params)[0]
        )

    assert found(2) == found(6)
    assert found(2)["all-reduce"] > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_state_keeps_its_type_in_an_explicit_mesh(dtype: str, jit: bool) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jnp.arange(64, dtype=dtype).reshape(2, 8, 4) / 64
        params = jax.device_put(params, NamedSharding(mesh, P(None, "x")))
        optimizer = mofo_jax.mofo(1e-2)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update) if jit else optimizer.update
        updates, new_state = update(params, state, params)
        types = [jax.tree.map(jax.typeof, tree) for tree in (state, new_state)]
        assert types[0] == types[1]
        assert jax.typeof(updates) == jax.typeof(params)


@pytest.mark.parametrize("kind", MESH_TYPES)
def test_an_ensemble_of_optimizers_is_mapped_over_a_sharded_axis(kind: str) -> None:
    gradients = np.float32(random_generator(0).normal(size=(16, 32)))
    optimizer = mofo_jax.mofo(1e-2)
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        placed = jax.device_put(gradients, NamedSharding(mesh, P("a", None)))
        state = jax.vmap(optimizer.init)(placed)
        updates, _ = jax.jit(jax.vmap(optimizer.update))(placed, state, placed)
    expected = selected(gradients, 0.15, (0,))
    np.testing.assert_array_equal(np.asarray(updates) != 0, expected)


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", MESH_TYPES)
def test_parts_of_a_sharded_axis(kind: str, parts: int) -> None:
    gradients = np.float32(random_generator(0).normal(size=(4, 16)))
    optimizer = mofo_jax.mofo(
        1e-2, update_fraction=0.5, block_axes=(mofo_jax.AxisParts(1, parts),)
    )
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        placed = jax.device_put(gradients, NamedSharding(mesh, P(None, "a")))
        state = optimizer.init(placed)
        if kind == "explicit" and parts < 4:
            with pytest.raises(
                ValueError,
                match=rf"`block_axes` for the tensor must split axis 1 into a multiple "
                rf"of 4 parts, .* axes \('a',\) shard it, got {parts} parts",
            ):
                optimizer.update(placed, state, placed)
            return
        updates, _ = jax.jit(optimizer.update)(placed, state, placed)
    expected = selected(gradients.reshape(4, parts, -1), 0.5, (1,)).reshape(4, 16)
    np.testing.assert_array_equal(np.asarray(updates) != 0, expected)


@pytest.mark.parametrize(
    ("kind", "order"), [("auto", (1, 2, 0)), ("explicit", (0, 1, 2))]
)
def test_the_order_of_axes_is_that_of_shards_of_known_shape(
    kind: str, order: tuple[int, ...]
) -> None:
    shape = 512, 32, 64
    sharding = NamedSharding(mesh_of(kind), P(("a", "b"), None, None))

    def held(x: jax.Array) -> jax.Array:
        return in_memory_order(rank_magnitudes(x, ())).arrays[0]

    given = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    found = jax.eval_shape(held, given)
    assert found.shape == tuple(shape[axis] for axis in order)
