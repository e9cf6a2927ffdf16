"""An optimizer state that is kept in the host's memory between steps.

It is moved to the device before `update` and back afterwards, as in trainers that
offload it; the transformation itself sees one kind of memory.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
import pytest

import mofo_jax
from examples.trainers.orbax_checkpoints import describe
from tests.checkpoints import runs
from tests.checkpoints.apis import APIS
from tests.helpers import assert_same_bits

OPTIMIZERS = {
    "mofo": mofo_jax.mofo(1e-2, weight_decay=0.1),
    "filtered momentum": mofo_jax.momentum_filter(optax.sgd(1e-2, momentum=0.9)),
}
STEPS = 3

compiled_placement = pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2),
    reason="XLA for CPUs cannot compile a placement in the host's memory before",
)


def on(kind: str, tree: Any) -> Any:
    """Returns the sharding of each array in another kind of memory."""
    return jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind(kind), tree)


def kinds(tree: Any) -> set[str | None]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def setting(optimizer: Any) -> tuple[Any, Any, list[Any]]:
    """Returns parameters, state and gradients on all devices."""
    mesh = runs.mesh_of(jax.device_count())
    params, *gradients = (
        runs.place(runs.arrays(seed), mesh, axis=0) for seed in range(STEPS + 1)
    )
    state = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding),
        optimizer.init(params),
        describe(optimizer, params)["state"],
    )
    return params, state, gradients


def plain_step(optimizer: Any) -> Callable[..., Any]:
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def offloaded_step(optimizer: Any, state: Any) -> Callable[..., Any]:
    """Returns a step that moves its state from the host's memory and back."""
    device, host = on("device", state), on("pinned_host", state)

    def step(params: Any, state: Any, gradients: Any) -> Any:
        state = jax.device_put(state, device)
        params, state = plain_step(optimizer)(params, state, gradients)
        return params, jax.device_put(state, host)

    return step


@pytest.fixture(scope="module", params=OPTIMIZERS)
def plain(request: pytest.FixtureRequest) -> tuple[Any, Any, list[Any]]:
    """Returns an optimizer, its compiled step, and the results of each step."""
    optimizer = OPTIMIZERS[request.param]
    params, state, gradients = setting(optimizer)
    step = jax.jit(plain_step(optimizer))
    after = []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        after.append((params, state))
    return optimizer, step, after


def test_a_state_moved_between_steps(plain: tuple[Any, Any, list[Any]]) -> None:
    optimizer, step, expected = plain
    params, state, gradients = setting(optimizer)
    device, host = on("device", state), on("pinned_host", state)
    state = jax.device_put(state, host)
    for gradient, after in zip(gradients, expected, strict=True):
        assert kinds(state) == {"pinned_host"}
        params, state = step(params, jax.device_put(state, device), gradient)
        assert_same_bits((params, state), after)
        state = jax.device_put(state, host)


@compiled_placement
def test_a_state_moved_within_the_step(plain: tuple[Any, Any, list[Any]]) -> None:
    optimizer, _, expected = plain
    params, state, gradients = setting(optimizer)
    place, host = on("device", params), on("pinned_host", state)
    step = jax.jit(
        offloaded_step(optimizer, state),
        in_shardings=(place, host, place),
        out_shardings=(place, host),
        donate_argnums=(0, 1),
    )
    state = jax.device_put(state, host)
    for gradient, after in zip(gradients, expected, strict=True):
        params, state = step(params, state, gradient)
        assert kinds(state) == {"pinned_host"}
        assert kinds(params) == {"device"}
        assert_same_bits((params, state), after)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a traced program and of its inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_array_is_created_in_the_hosts_memory(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    params, state, gradients = setting(optimizer)
    traced = jax.make_jaxpr(offloaded_step(optimizer, state))(
        params, jax.device_put(state, on("pinned_host", state)), gradients[0]
    )
    spaces: dict[str, set[str]] = {}
    for equation in equations(traced.jaxpr):
        for variable in (*equation.invars, *equation.outvars):
            space = str(variable.aval.memory_space).rpartition(".")[2].lower()
            spaces.setdefault(space, set()).add(equation.primitive.name)
    assert spaces["host"] == {"device_put"}
    assert {"mul", "select_n"} <= spaces["device"]
    assert set(spaces) == {"host", "device"}
    constants = [constant for constant in traced.consts if hasattr(constant, "aval")]
    assert kinds(constants) <= {"device"}


@compiled_placement
def test_a_state_that_is_not_moved_is_an_error() -> None:
    """JAX raises an error, since a computation reads from one kind of memory."""
    optimizer = OPTIMIZERS["mofo"]
    params, state, gradients = setting(optimizer)
    state = jax.device_put(state, on("pinned_host", state))
    with pytest.raises(ValueError, match="memory_space of all inputs passed to"):
        jax.eval_shape(plain_step(optimizer), params, state, gradients[0])


@pytest.mark.parametrize("api", APIS)
def test_a_checkpoint_restores_into_the_hosts_memory(
    api: str, plain: tuple[Any, Any, list[Any]], tmp_path: pathlib.Path
) -> None:
    optimizer, _, expected = plain
    params, state = expected[-1]
    with APIS[api](tmp_path) as checkpoints:
        in_host = jax.device_put(state, on("pinned_host", state))
        checkpoints.save(STEPS, {"params": params, "state": in_host})
    wanted = describe(optimizer, params)
    wanted["state"] = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        wanted["state"],
        on("pinned_host", wanted["state"]),
    )
    with APIS[api](tmp_path) as checkpoints:
        restored = checkpoints.restore(STEPS, wanted)
    assert kinds(restored["state"]) == {"pinned_host"}
    assert kinds(restored["params"]) == {"device"}
    assert_same_bits(restored, {"params": params, "state": state})
