"""The inverse covariance of sharded parameters: the same steps for every sharding."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax
from mofo_jax import InputCovariance
from mofo_jax._covariances.shardings import follow
from tests.helpers import random_generator

MESH_TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SHAPES = {"kernel": (16, 24), "layers": (8, 16, 24), "heads": (4, 8, 16)}
AXES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "kernel": ((0,), ()),
    "layers": ((1,), (0,)),
    "heads": ((0, 1), ()),
}
SPECS = {
    "rows": {"kernel": P("a"), "layers": P(None, "a"), "heads": P("a")},
    "columns": {
        "kernel": P(None, ("a", "b")),
        "layers": P(None, None, ("b", "a")),
        "heads": P(None, None, "a"),
    },
    "both": {
        "kernel": P("a", "b"),
        "layers": P(None, "b", "a"),
        "heads": P("b", None, "a"),
    },
    "layers": {"kernel": P(("a", "b")), "layers": P("a", "b"), "heads": P("a", "b")},
    "replicated": dict.fromkeys(SHAPES, P()),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    # Eight devices divide neither the number nor the length of a kernel's blocks.
    "blocks": {"block_size": 4, "dtype": "bfloat16"},
    "low rank": {"rank": 3},
}


def covariance(name: str) -> np.ndarray:
    axes, batch_axes = AXES[name]
    n = int(np.prod([SHAPES[name][axis] for axis in axes]))
    batch = [SHAPES[name][axis] for axis in batch_axes]
    x = random_generator().normal(size=(*batch, 3 * n, n)) * np.geomspace(1, 20, n)
    return (np.swapaxes(x, -1, -2) @ x / (3 * n)).astype(np.float32)


def train_step(optimizer: Any, params: Any, state: Any, grads: Any) -> tuple:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def optimizer_of(covariances: Any, options: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(),
        mofo_jax.scale_by_inverse_covariance(covariances, **options),
        optax.scale_by_learning_rate(0.1),
    )


@functools.cache
def alone(options: str) -> Any:
    """Returns the parameters after three steps on one device."""
    covariances = {
        name: InputCovariance(jnp.asarray(covariance(name)), *AXES[name])
        for name in SHAPES
    }
    optimizer = optimizer_of(covariances, OPTIONS[options])
    params, *grads = trees()
    state = optimizer.init(params)
    step = jax.jit(functools.partial(train_step, optimizer))
    for gradient in grads:
        params, state = step(params, state, gradient)
    return jax.device_get(params)


def trees() -> list[dict[str, jax.Array]]:
    rng = random_generator()
    return [
        {name: jnp.float32(rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for _ in range(4)
    ]


def gathered(text: str) -> set[tuple[int, ...]]:
    """Returns the shapes of the results of a program's all-gathers."""
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
    return {tuple(map(int, shape.split(","))) for shape in shapes}


def gathered_of(state: Any, spec: dict[str, P]) -> set[tuple[int, ...]]:
    """Returns the shapes of the matrices that have to be gathered, at most one stack.

    Args:
      state: the state of the inverse covariance.
      spec: of the parameters.
    """
    # One layer at a time, or the device's layers if layers are sharded.
    layers = 1 if spec["layers"][:1] in ((), (None,)) else SHAPES["layers"][0] // 4
    lead = {"layers": (layers,)}
    return {
        (*lead.get(name, ()), *leaf.shape[len(AXES[name][1]) :])
        for name, factor in state.factors.items()
        for leaf in jax.tree.leaves(factor)
    }


def sharded(mesh: Any, name: str) -> tuple[Any, list[Any], dict[str, InputCovariance]]:
    """Returns shardings, parameters with gradients, and covariances on a mesh."""
    places = {key: NamedSharding(mesh, spec) for key, spec in SPECS[name].items()}
    params, *grads = (jax.device_put(tree, places) for tree in trees())
    covariances = {}
    for key in SHAPES:
        matrix = covariance(key)
        axes, batch_axes = AXES[key]
        place = follow(params[key], axes, batch_axes, matrix.shape[-1])
        matrix = jax.device_put(jnp.asarray(matrix), place)
        covariances[key] = InputCovariance(
            matrix, axes, batch_axes, sharding=places[key]
        )
    return places, [params, *grads], covariances


@pytest.mark.parametrize("kind", MESH_TYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", SPECS)
def test_sharded_as_on_one_device(name: str, options: str, kind: str) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(MESH_TYPES[kind],) * 2)
    with jax.set_mesh(mesh):
        places, (params, *grads), covariances = sharded(mesh, name)
        optimizer = optimizer_of(covariances, OPTIONS[options])
        state = optimizer.init(params)
        types = jax.tree.map(jax.typeof, (params, state))
        step = jax.jit(functools.partial(train_step, optimizer), donate_argnums=(0, 1))
        compiled = step.lower(params, state, grads[0]).compile()
        for gradient in grads:
            params, state = compiled(params, state, gradient)
    assert jax.tree.map(jax.typeof, (params, state)) == types
    # The matrices are gathered, and neither parameters nor updates.
    wanted = set() if name == "replicated" else gathered_of(state[1], SPECS[name])
    assert gathered(compiled.as_text()) == wanted
    for key, desired in alone(options).items():
        np.testing.assert_allclose(params[key], desired, rtol=1e-3, atol=1e-3)
        assert params[key].sharding.is_equivalent_to(places[key], params[key].ndim)
    for key, factor in state[1].factors.items():
        for leaf in jax.tree.leaves(factor):
            divided = leaf.sharding.shard_shape(leaf.shape) != leaf.shape
            assert divided == (SPECS[name][key] != P())


@pytest.mark.parametrize("kind", MESH_TYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_mesh_need_not_be_the_context(options: str, kind: str) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(MESH_TYPES[kind],) * 2)
    _, (params, *grads), covariances = sharded(mesh, "both")
    rows = NamedSharding(mesh, P("a"))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        kernel = jax.device_put(params["kernel"], NamedSharding(mesh, P()))
        explicit = rows if kind == "explicit" else None
        return jnp.einsum("td,df->tf", x, kernel, out_sharding=explicit)

    x = random_generator().normal(size=(32, 16)).astype(np.float32)
    estimated = mofo_jax.input_covariances(apply, params, [jax.device_put(x, rows)])
    estimated = estimated["kernel"]
    np.testing.assert_allclose(estimated.matrix, x.T @ x / 32, rtol=1e-4, atol=1e-4)
    optimizer = optimizer_of(covariances, OPTIONS[options])
    state = optimizer.init(params)
    step = jax.jit(functools.partial(train_step, optimizer))
    for gradient in grads:
        params, state = step(params, state, gradient)
    for key, desired in alone(options).items():
        np.testing.assert_allclose(params[key], desired, rtol=1e-3, atol=1e-3)


def test_a_matrix_is_gathered_once_for_all_parameters_with_the_input() -> None:
    widths = {"query": 24, "key": 8, "value": 8}
    matrix = jnp.asarray(covariance("layers"))
    rng = random_generator()
    updates = {
        name: jnp.float32(rng.normal(size=(8, 16, width)))
        for name, width in widths.items()
    }
    alone_ = {
        name: InputCovariance(matrix, *AXES["layers"], source="query")
        for name in widths
    }
    optimizer = mofo_jax.scale_by_inverse_covariance(alone_)
    desired, _ = optimizer.update(updates, optimizer.init(updates))
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, P(None, "a", "b"))
    updates = jax.device_put(updates, place)
    matrix = jax.device_put(matrix, follow(updates["query"], *AXES["layers"], 16))
    optimizer = mofo_jax.scale_by_inverse_covariance(
        {
            name: InputCovariance(
                matrix, *AXES["layers"], source="query", sharding=place
            )
            for name in widths
        }
    )
    with jax.set_mesh(mesh):
        state = optimizer.init(updates)
        compiled = jax.jit(optimizer.update).lower(updates, state).compile()
        made, _ = compiled(updates, state)
    assert (compiled.as_text() or "").count(" all-gather(") == 1
    assert len(state.factors) == 1
    for name in widths:
        np.testing.assert_allclose(made[name], desired[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_state_continues_on_another_mesh(options: str) -> None:
    meshes = [jax.make_mesh(shape, ("a", "b")) for shape in ((4, 2), (2, 2))]
    params = state = step = None
    for mesh, name in zip(meshes, ("both", "columns"), strict=True):
        with jax.set_mesh(mesh):
            _, (start, *grads), covariances = sharded(mesh, name)
            optimizer = optimizer_of(covariances, OPTIONS[options])
            own = start, optimizer.init(start)
            if params is not None:
                places = jax.tree.map(lambda x: x.sharding, own)
                own = jax.device_put((params, state), places)
            params, state = own
            step = jax.jit(functools.partial(train_step, optimizer))
            for gradient in grads[:1] if mesh is meshes[0] else grads[1:]:
                params, state = step(params, state, gradient)
    assert params is not None
    for key, desired in alone(options).items():
        np.testing.assert_allclose(params[key], desired, rtol=1e-3, atol=1e-3)


class Model(nnx.Module):
    def __init__(self) -> None:
        init = nnx.initializers.lecun_normal()
        self.up = nnx.Linear(
            16,
            8,
            rngs=nnx.Rngs(0),
            kernel_init=nnx.with_partitioning(init, ("a", "b")),
        )
        self.down = nnx.Linear(
            8, 4, rngs=nnx.Rngs(1), kernel_init=nnx.with_partitioning(init, ("b", None))
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


def test_flax_nnx_takes_the_state_of_an_annotated_model() -> None:
    """The matrix has another shape than its kernel, and cannot have its sharding."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.float32(random_generator().normal(size=(32, 16)))
    with jax.set_mesh(mesh):
        model = nnx.jit(Model)()
        graph, params = nnx.split(model, nnx.Param)
        covariances = mofo_jax.input_covariances(
            lambda params, x: nnx.merge(graph, params)(x), params, [x]
        )
        optimizer = nnx.Optimizer(model, optimizer_of(covariances, {}), wrt=nnx.Param)

        @nnx.jit
        def step(model: Model, optimizer: nnx.Optimizer) -> None:
            grads = nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)
            optimizer.update(model, grads)

        before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        step(model, optimizer)
        after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    moved = np.asarray(before["up"]["kernel"] - after["up"]["kernel"], np.float64)
    a = np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / 32
    # Adam's first step is the sign of the gradient.
    undone = (np.eye(16) + a / (0.3 * np.trace(a) / 16)) @ moved / 0.1
    np.testing.assert_allclose(np.abs(undone), np.ones((16, 8)), rtol=2e-2)
    assert after["up"]["kernel"].sharding.spec == P("a", "b")
    factor = optimizer.opt_state[1].factors["up"]["kernel"]
    assert factor.sharding.shard_shape(factor.shape) == (2, 16)
