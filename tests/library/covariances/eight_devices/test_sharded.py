"""Covariances of sharded activations: the same numbers, and no gathering."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax
from mofo_jax import _input_covariances
from tests.library.covariances.hand import Expected, check, mean_outer, normal

MESH_TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
X = normal(8, 6, 16)
STACK = normal(3, 16, 16, seed=1) / 4
UP = normal(16, 32, seed=2) / 4
DOWN = normal(32, 16, seed=3) / 4
HEADS = normal(16, 4, 8, seed=4) / 4
PARAMS = {"stack": STACK, "up": UP, "down": DOWN, "heads": HEADS}
SPECS = {
    "rows": {"stack": P(None, "a"), "up": P("a"), "down": P("a"), "heads": P("a")},
    "columns": {
        "stack": P(None, None, ("a", "b")),
        "up": P(None, "a"),
        "down": P(None, ("a", "b")),
        "heads": P(None, "a", "b"),
    },
    "both": {
        "stack": P(None, "a", "b"),
        "up": P("a", "b"),
        "down": P("b", "a"),
        "heads": P("a", "b"),
    },
    "replicated": dict.fromkeys(PARAMS, P()),
}


def apply(params: Any, x: jax.Array) -> Any:
    @jax.checkpoint
    def layer(x: jax.Array, w: jax.Array) -> Any:
        return jnp.tanh(dot(x, w)), None

    x, _ = lax.scan(layer, x, params["stack"])
    heads = dot(x, params["heads"].reshape(16, 32))
    hidden = jnp.tanh(dot(x, params["up"])) + heads
    return dot(hidden, params["down"])


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns a product whose rows are sharded like those of the input."""
    mesh = jax.typeof(x).sharding.mesh
    explicit = not mesh.empty and set(mesh.axis_types) == {AxisType.Explicit}
    if not explicit:
        return x @ w
    # A model in an Explicit mesh must reshard its kernel explicitly.
    w = jax.sharding.reshard(w, P())
    return jnp.einsum("btd,df->btf", x, w, out_sharding=P("a"))


def by_hand() -> dict[str, Expected]:
    x, each = X, []
    for w in STACK:
        each.append(mean_outer(x))
        x = np.tanh(x @ w)
    hidden = np.tanh(x @ UP) + x @ HEADS.reshape(16, 32)
    last = Expected(mean_outer(x))
    return {
        "stack": Expected(np.stack(each), (1,), (0,)),
        "up": last,
        "heads": last,
        "down": Expected(mean_outer(hidden)),
    }


@pytest.mark.parametrize("kind", MESH_TYPES)
@pytest.mark.parametrize("name", SPECS)
def test_any_sharding_gives_the_same(name: str, kind: str) -> None:
    if (name, kind) == ("columns", "explicit") and jax.__version_info__ < (0, 10):
        pytest.skip("JAX before 0.10 cannot merge two axes that are both sharded")
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(MESH_TYPES[kind],) * 2)
    with jax.set_mesh(mesh):
        params = {
            key: jax.device_put(jnp.float32(w), NamedSharding(mesh, SPECS[name][key]))
            for key, w in PARAMS.items()
        }
        x = jax.device_put(jnp.float32(X), NamedSharding(mesh, P("a")))
        actual = mofo_jax.input_covariances(apply, params, [x, x])
        check(actual, by_hand())
        template = actual
        if kind == "auto":
            abstract = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
                (params, x),
            )
            template = mofo_jax.input_covariances(apply, abstract[0], [abstract[1]])
            assert template.keys() == actual.keys()
    divided = name != "replicated"
    for key, covariance in actual.items():
        matrix = covariance.matrix
        assert (matrix.sharding.shard_shape(matrix.shape) != matrix.shape) == divided
        assert covariance.sharding == params[key].sharding
        other = template[key].matrix
        assert (other.shape, other.dtype) == (matrix.shape, matrix.dtype)
        assert other.sharding.is_equivalent_to(matrix.sharding, matrix.ndim)


@pytest.mark.parametrize("kind", MESH_TYPES)
def test_sums_are_sharded_from_the_first_batch_on(kind: str) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(MESH_TYPES[kind],) * 2)
    with jax.set_mesh(mesh):
        params = {
            key: jax.device_put(jnp.float32(w), NamedSharding(mesh, SPECS["rows"][key]))
            for key, w in PARAMS.items()
        }
        x = jax.device_put(jnp.float32(X), NamedSharding(mesh, P("a")))
        program = _input_covariances._make(apply, params, x, None)
        sums = _input_covariances._zeros(program, params)()
        places = [matrix.sharding for matrix, _ in sums]
        for place, (matrix, _) in zip(places, sums, strict=True):
            assert place.shard_shape(matrix.shape) != matrix.shape
        add: Any = _input_covariances._compile(program, params, None)
        for _ in range(3):
            sums = add(sums, program.plan.consts, params, x)
        assert add._cache_size() == 1
    for place, (matrix, _) in zip(places, sums, strict=True):
        assert matrix.sharding.is_equivalent_to(place, matrix.ndim)


def test_activations_are_not_gathered() -> None:
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    places = NamedSharding(mesh, P()), NamedSharding(mesh, P("a"))
    given = (
        jax.device_put(jax.tree.map(jnp.float32, PARAMS), places[0]),
        jax.device_put(jnp.float32(X), places[1]),
    )
    compiled = jax.jit(lambda params, x: mofo_jax.input_covariances(apply, params, [x]))
    text = compiled.lower(*given).compile().as_text()
    assert text is not None
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text
