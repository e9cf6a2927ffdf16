"""The sharded programs of `examples/trainers`, on eight devices and on one."""

import functools
from typing import Any

import flax
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import mofo_jax
from examples.trainers import flax_linen, flax_nnx_sharded, plain_jax
from tests.trainers.comparing import (
    DAMPING,
    FRACTION,
    by_path,
    check_everything_is_adamw,
    check_first_step,
    check_scaled_step,
    make_optimizers,
    moved_at_first,
)

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
FLAX = tuple(map(int, flax.__version__.split(".")[:3]))
MODES = pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=lambda kind: kind.name)


def make_mesh(
    shape: tuple[int, ...], names: tuple[str, ...], kind: AxisType = AUTO
) -> Mesh:
    """Returns a mesh of the number of devices that its shape needs."""
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, (kind,) * len(shape), devices=devices)


def check_shardings(params: Any, state: Any) -> None:
    """Checks that moments are sharded like parameters, and that some are divided."""
    divided = 0
    moments = [jax.tree.leaves(optax.tree.get(state, name)) for name in ("mu", "nu")]
    leaves = jax.tree.leaves(params)
    for param, mu, nu in zip(leaves, *moments, strict=True):
        divided += not param.is_fully_replicated
        for moment in (mu, nu):
            assert moment.shape == param.shape
            assert moment.sharding.is_equivalent_to(param.sharding, param.ndim)
    assert divided > 2


def layers_on_axis_one(path: str) -> tuple[int, ...]:
    """Returns block axes that make layers blocks if they are stacked."""
    return (1,) if "layers/" in path else ()


@pytest.fixture(scope="module")
def moved_on_one_device() -> dict[str, np.ndarray]:
    """The coordinates that the first step of the NNX program moves without sharding."""
    mesh = make_mesh((1, 1), ("data", "model"))
    train = functools.partial(flax_nnx_sharded.train, mesh=mesh)
    return moved_at_first(train, make_optimizers().mofo)


@MODES
def test_flax_nnx(kind: AxisType, moved_on_one_device: dict) -> None:
    if kind is EXPLICIT and FLAX < (0, 12, 3):
        pytest.skip("Flax could not shard annotated parameters there before 0.12.3")
    mesh = make_mesh((4, 2), ("data", "model"), kind)
    train = functools.partial(flax_nnx_sharded.train, mesh=mesh)
    optimizers = make_optimizers()
    moved = check_first_step(train, optimizers)
    assert moved.keys() == moved_on_one_device.keys()
    for path, mask in moved.items():
        np.testing.assert_array_equal(mask, moved_on_one_device[path], path)
    check_everything_is_adamw(train, optimizers)
    losses, params, state = train(optimizers.mofo, 20)
    assert losses[-1] < 0.8 * losses[0]
    check_shardings(params, state)
    kernel = params["up"]["kernel"][...]
    assert kernel.sharding.spec == P(None, "model")


@MODES
def test_flax_nnx_with_inverse_covariances(kind: AxisType) -> None:
    if kind is EXPLICIT and FLAX < (0, 12, 3):
        pytest.skip("Flax could not shard annotated parameters there before 0.12.3")
    mesh = make_mesh((4, 2), ("data", "model"), kind)
    with jax.set_mesh(mesh):
        graph, params = nnx.split(flax_nnx_sharded.Network(nnx.Rngs(0)), nnx.Param)
        x, _ = flax_nnx_sharded.batch(0, mesh)
        covariances = mofo_jax.input_covariances(
            lambda params, x: nnx.merge(graph, params)(x), params, [x]
        )
        scale = mofo_jax.scale_by_inverse_covariance(covariances, DAMPING)

    def ours() -> optax.GradientTransformation:
        with jax.set_mesh(mesh):
            own = flax_nnx_sharded.with_metadata(scale, scale.init(params))
        rate = optax.scale_by_learning_rate(1e-2)
        return optax.chain(optax.scale_by_adam(), own, rate)

    def after(steps: int, optimizer: Any) -> dict[str, np.ndarray]:
        found = by_path(flax_nnx_sharded.train(optimizer, steps, mesh)[1])
        return {path.removesuffix("/value"): x for path, x in found.items()}

    start, adam = (after(steps, optax.adam(1e-2)) for steps in (0, 1))
    check_scaled_step(covariances, start, adam, after(1, ours()))
    state = flax_nnx_sharded.train(ours(), 1, mesh)[2]
    matrix = state[1].factors["up"]["kernel"]
    assert matrix.get_metadata("out_sharding") == P("model", None)
    assert matrix[...].sharding.shard_shape(matrix.shape) == (4, 8)


def test_flax_linen() -> None:
    mesh = make_mesh((4, 2), ("data", "model"))
    train = functools.partial(flax_linen.train, mesh=mesh)
    rules = mofo_jax.PathRules({"^layers/": (1,)}, default=())
    optimizers = make_optimizers(block_axes=rules)
    check_first_step(train, optimizers, layers_on_axis_one)
    check_everything_is_adamw(train, optimizers)
    losses, params, state = train(optimizers.mofo, 20)
    assert losses[-1] < 0.8 * losses[0]
    check_shardings(params, state)
    # The boxes of parameters stacked on axis 1.
    box = params["layers"]["Dense_0"]["kernel"]
    assert box.names == ("embed", "layers", "mlp")
    assert box.value.shape == (8, flax_linen.LAYERS, 32)
    assert box.value.sharding.spec == P("data", None, "model")


def test_plain_jax() -> None:
    mapped, whole = (
        functools.partial(plain_jax.train, step_function=step)
        for step in (plain_jax.sharded_step, plain_jax.whole_step)
    )
    named = make_optimizers(axis_name=plain_jax.AXIS)
    check_everything_is_adamw(mapped, named)
    moved = check_first_step(mapped, named)
    unnamed = make_optimizers().mofo
    for path, mask in moved_at_first(whole, unnamed).items():
        np.testing.assert_array_equal(moved[path], mask, path)
    losses, params, state = mapped(named.mofo, 20)
    assert losses[-1] < 0.8 * losses[0]
    for name, spec in plain_jax.SPECS.items():
        for tree in (params, state[0].mu, state[0].nu):
            assert tree[name].sharding.spec == spec
    # Without the name, each shard selects separately: one of its eight in `down`.
    apart = moved_at_first(mapped, unnamed)
    assert not np.array_equal(apart["up"], moved["up"])
    assert apart["down"].reshape(8, 8).sum(axis=1).tolist() == [1] * 8
    assert moved["down"].reshape(8, 8).sum(axis=1).tolist() != [1] * 8
    assert int(moved["down"].sum()) == int(FRACTION * 64)
