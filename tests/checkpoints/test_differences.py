"""Checkpoints that do not fit: Orbax's errors, and the differences we report."""

import gc
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import mofo_jax
from examples.finetune.command.errors import InputError
from examples.finetune.storage.checkpoints import ArmFiles, Position
from examples.trainers import orbax_checkpoints as recipe
from tests.checkpoints import runs
from tests.checkpoints.apis import APIS
from tests.finetune.storage.test_checkpoints import batches


def abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def layers(count: int, width: int = 3, dtype: str = "float32") -> dict[str, Any]:
    kernel = jnp.full((4, width), 1.5, dtype)
    return {"layers": [{"kernel": kernel} for _ in range(count)], "scale": jnp.ones(4)}


def save(api: str, path: pathlib.Path, tree: Any) -> None:
    with APIS[api](path) as checkpoints:
        checkpoints.save(1, tree)


def complaints(error: BaseException | None) -> str:
    """Returns the messages of an error and of its causes."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(words)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(("stored", "wanted"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("named", [True, False], ids=["dict", "list"])
def test_orbax_names_a_leaf_that_one_side_lacks(
    named: bool, stored: int, wanted: int, api: str, tmp_path: pathlib.Path
) -> None:
    def tree(count: int) -> Any:
        kernels = layers(count)["layers"]
        if named:
            kernels = {str(number): kernel for number, kernel in enumerate(kernels)}
        return {"layers": kernels, "scale": jnp.ones(4)}

    save(api, tmp_path, tree(stored))
    with APIS[api](tmp_path) as checkpoints:
        with pytest.raises((ValueError, LookupError)) as caught:
            checkpoints.restore(1, abstract(tree(wanted)))
        found = recipe.differences(checkpoints.stored(1), tree(wanted))
    # In the newer interface, this is the cause of a less specific error.
    said = complaints(caught.value)
    assert "tree structures do not match" in said
    if named:
        assert "layers.1:" in said
        side = "Source" if stored > wanted else "Target"
        assert f"{side}: MISSING" in said
    else:
        # For a list, it says that the lengths differ.
        assert "layers:" in said
        assert "layers.1" not in said
    sides = ["float32[4, 3] stored, nothing", "nothing stored, float32[4, 3]"]
    assert found == [f"layers.1.kernel: {sides[wanted > stored]} wanted"]


# Orbax may cancel its own reads before they begin, which Python warns about.
@pytest.mark.filterwarnings(
    "ignore:coroutine 'Store._get_array_metadatas' was never awaited:RuntimeWarning"
)
@pytest.mark.parametrize("api", APIS)
def test_orbax_refuses_another_shape_without_a_name(
    api: str, tmp_path: pathlib.Path
) -> None:
    # Only one leaf, because cancelled reads of others would warn elsewhere.
    save(api, tmp_path, {"kernel": jnp.ones((4, 3))})
    wanted = {"kernel": jnp.ones((6, 3))}
    with APIS[api](tmp_path) as checkpoints:
        with pytest.raises((ValueError, LookupError)) as caught:
            checkpoints.restore(1, abstract(wanted))
        found = recipe.differences(checkpoints.stored(1), wanted)
    said = complaints(caught.value)
    # Dispose of cancelled reads here rather than in a later test.
    del caught
    gc.collect()
    assert "Requested shape: (6, 3) is not compatible" in said
    assert found == ["kernel: float32[4, 3] stored, float32[6, 3] wanted"]


@pytest.mark.parametrize("api", APIS)
def test_orbax_casts_silently(api: str, tmp_path: pathlib.Path) -> None:
    save(api, tmp_path, layers(2))
    wanted = layers(2)
    wanted["layers"][1]["kernel"] = jnp.zeros((4, 3), "int32")
    with APIS[api](tmp_path) as checkpoints:
        restored = checkpoints.restore(1, abstract(wanted))
        found = recipe.differences(checkpoints.stored(1), wanted)
    assert int(restored["layers"][1]["kernel"][0, 0]) == 1
    assert found == ["layers.1.kernel: float32[4, 3] stored, int32[4, 3] wanted"]


def test_the_example_reports_every_differing_leaf(tmp_path: pathlib.Path) -> None:
    mesh = runs.mesh_of(1)
    params = runs.place({"a": jnp.ones((4, 3)), "b": jnp.ones(4)}, mesh, axis=0)
    narrow = optax.adamw(1e-3, mu_dtype="bfloat16")
    save("manager", tmp_path, {"params": params, "state": narrow.init(params)})
    wanted = recipe.describe(mofo_jax.mofo(1e-3), params)
    with (
        recipe.open_checkpoints(tmp_path) as manager,
        pytest.raises(ValueError, match=r"Step 1 of the checkpoints has ") as caught,
    ):
        recipe.restore(manager, 1, wanted)
    _, _, found = str(caught.value).partition(" has ")
    assert sorted(found.split("; ")) == [
        "state.0.mu.a: bfloat16[4, 3] stored, float32[4, 3] wanted",
        "state.0.mu.b: bfloat16[4] stored, float32[4] wanted",
    ]
    with recipe.open_checkpoints(tmp_path) as manager:
        same = recipe.describe(mofo_jax.mofo(1e-3, mu_dtype="bfloat16"), params)
        restored = recipe.restore(manager, 1, same)
    assert restored["state"][0].mu["a"].dtype == jnp.bfloat16


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "mofo": lambda: mofo_jax.mofo(optax.constant_schedule(1e-3), weight_decay=0.1),
    "momentum": lambda: mofo_jax.momentum_filter(optax.sgd(1e-3, momentum=0.9)),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), mofo_jax.scale_by_mofo(), optax.scale(-1e-3)
    ),
    "injected": lambda: optax.inject_hyperparams(
        mofo_jax.mofo, hyperparam_dtype=jnp.float32
    )(1e-3, update_fraction=0.2),
    "partitioned": lambda: optax.partition(
        {"moves": mofo_jax.mofo(1e-3), "rests": optax.set_to_zero()},
        {"layers": [{"kernel": "moves"}, {"kernel": "rests"}], "scale": "moves"},
    ),
    "accumulated": lambda: optax.MultiSteps(mofo_jax.mofo(1e-3), 4),
    "half": lambda: mofo_jax.baselines.half_fine_tuning(optax.adamw(1e-3)),
}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_fits_has_no_differences(
    name: str, api: str, tmp_path: pathlib.Path
) -> None:
    params = layers(2)
    state = OPTIMIZERS[name]().init(params)
    save(api, tmp_path, {"params": params, "state": state})
    with APIS[api](tmp_path) as checkpoints:
        stored = checkpoints.stored(1)
    assert recipe.differences(stored, {"params": params, "state": state}) == []


def test_fine_tuning_rejects_another_model_or_optimizer(tmp_path: pathlib.Path) -> None:
    adam, params = optax.adam(1e-3), layers(2)
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:
        kept.save(Position(1), params, adam.init(params), batches())
    narrow, wider = layers(2, dtype="bfloat16"), layers(2, width=5)
    with ArmFiles(tmp_path, "adam", 1e-3) as kept:
        with pytest.raises(InputError, match=r"1/params is of another model") as caught:
            kept.restore(narrow, adam.init(narrow), batches())
        for number in range(2):
            place = (
                f"layers.{number}.kernel: float32[4, 3] stored, bfloat16[4, 3] wanted"
            )
            assert place in str(caught.value)
        with pytest.raises(InputError, match=r"layers\.1\.kernel: .*\[4, 5\] wanted"):
            kept.restore_params(wider)
        sgd = optax.sgd(1e-3, momentum=0.9)
        with pytest.raises(
            InputError, match=r"1/state is .*0\.nu\.scale: float32\[4\]"
        ):
            kept.restore(params, sgd.init(params), batches())
        assert kept.restore(params, adam.init(params), batches())[2] == Position(1)
