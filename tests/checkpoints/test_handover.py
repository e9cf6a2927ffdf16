"""MoFO resumes AdamW's checkpoints and AdamW MoFO's, with both of Orbax's APIs."""

import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import mofo_jax
from examples.trainers import orbax_checkpoints as recipe
from tests.checkpoints.apis import APIS
from tests.helpers import assert_same_bits, gradients_like, random_generator, types

STEPS = 3
SCHEDULE = optax.linear_schedule(1e-2, 1e-3, 20)
ARGUMENTS: dict[str, Any] = {"learning_rate": SCHEDULE, "weight_decay": 0.1}
LEGS = {
    "adamw": optax.adamw(**ARGUMENTS),
    "mofo": mofo_jax.mofo(**ARGUMENTS),
    "adamw again": optax.adamw(**ARGUMENTS),
}


def start() -> Any:
    """Returns parameters in two dtypes, on a mesh of all devices."""
    rng = random_generator()
    mesh = jax.make_mesh(
        (jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    params = {
        "layers": [
            {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)},
            {"kernel": jnp.asarray(rng.normal(size=(8, 24)), jnp.bfloat16)},
        ],
        "scale": jnp.asarray(rng.normal(size=8), jnp.float32),
        "nothing": None,
    }
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    return jax.device_put(params, place)


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """Returns the compiled step of each part of the run."""

    def step(optimizer: Any) -> Any:
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step)

    return {name: step(optimizer) for name, optimizer in LEGS.items()}


def run(step: Any, params: Any, state: Any, gradients: list[Any]) -> tuple[Any, Any]:
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params, state


@pytest.fixture(scope="module")
def unbroken(steps: dict[str, Any]) -> list[Any]:
    """Returns parameters and state after each part of a run without checkpoints."""
    params = start()
    state = LEGS["adamw"].init(params)
    after = []
    for number, name in enumerate(LEGS):
        gradients = gradients_like(params, STEPS, seed=number)
        params, state = run(steps[name], params, state, gradients)
        after.append((params, state))
    return after


@pytest.mark.parametrize("api", APIS)
def test_each_resumes_the_others_checkpoint(
    api: str, tmp_path: pathlib.Path, steps: dict[str, Any], unbroken: list[Any]
) -> None:
    params = start()
    kept = {"params": params, "state": LEGS["adamw"].init(params)}
    for number, name in enumerate(LEGS):
        if number:
            wanted = recipe.describe(LEGS[name], params)
            # A new run opens the directory again.
            with APIS[api](tmp_path) as checkpoints:
                stored = checkpoints.stored(number * STEPS)
                assert recipe.differences(stored, wanted) == []
                kept = checkpoints.restore(number * STEPS, wanted)
            assert types(kept) == types(wanted)
            assert jax.tree.structure(kept) == jax.tree.structure(wanted)
        gradients = gradients_like(params, STEPS, seed=number)
        kept = run(steps[name], kept["params"], kept["state"], gradients)
        assert_same_bits(kept, unbroken[number])
        kept = dict(zip(("params", "state"), kept, strict=True))
        with APIS[api](tmp_path) as checkpoints:
            checkpoints.save((number + 1) * STEPS, kept)


def test_the_legs_differ(unbroken: list[Any]) -> None:
    """The optimizers differ: MoFO leaves coordinates unchanged."""
    kernels = [params["layers"][0]["kernel"] for params, _ in unbroken]
    moved = [float(jnp.mean(a != b)) for a, b in itertools.pairwise(kernels)]
    assert 0.1 < moved[0] < 0.5
    assert moved[1] > 0.99


def test_the_example_resumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "STEPS", 5)
    recipe.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "step   0",
        "step   5",
        "step   5",
        "step  10",
    ]
    losses = [float(line.split()[-1]) for line in lines]
    assert losses[0] > losses[1] == losses[2] > losses[3]
