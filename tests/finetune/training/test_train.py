"""The training step, and an arm that is interrupted."""

import dataclasses
import gc
import json
import pathlib
import subprocess
import sys
import weakref
from typing import Any

import jax
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from examples.finetune.command.config import Arm
from examples.finetune.command.optimizers import NEEDS
from examples.finetune.data.batches import (
    evaluation_batches,
    loss_targets,
)
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.pretrained import Source
from examples.finetune.storage import checksums
from examples.finetune.storage.checkpoints import ArmFiles, Position
from examples.finetune.training import information, own_text, train
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import (
    State,
    Step,
    gradients,
    init_state,
    make_step,
)
from tests.finetune import small
from tests.finetune.arms import CONFIG, batches, examples, interrupt, own_texts, place
from tests.helpers import assert_same_bits

Built = tuple[Any, dict[str, Any]]


@pytest.fixture(scope="module")
def built(tiny_source: Source) -> Built:
    mesh = sharding.make_mesh("")
    return parameters.split(pretrained.build(tiny_source, scan_layers=True, mesh=mesh))


@pytest.fixture
def params(built: Built) -> dict[str, Any]:
    """A copy that may be donated."""
    start = built[1]
    return parameters.place(parameters.to_host(start), parameters.shardings(start))


def test_the_loss_is_the_mean_over_what_is_to_be_learned(built: Built) -> None:
    graph, params = built
    chosen = examples()[:8]
    (batch,) = evaluation_batches(chosen, batch_size=8, sequence_length=32)
    losses = []
    for example in chosen:
        logits = small.logits(graph, params, example.ids).astype(np.float64)
        logs = log_softmax(logits, axis=-1)
        for index in range(1, len(example.ids)):
            if example.loss[index]:
                losses.append(-logs[index - 1, example.ids[index]])
    means, _ = gradients(graph, params, place(batch), 1)
    assert float(means["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(built: Built) -> None:
    graph, params = built
    batch = next(batches(dataclasses.replace(CONFIG, accumulation_steps=2)))
    counted = loss_targets(batch)[1].sum(axis=1)
    assert counted[::2].sum() != counted[1::2].sum()
    whole = gradients(graph, params, place(batch), 1)
    parts = gradients(graph, params, place(batch), 2)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6),
        *(whole, parts),
    )


def test_gradients_of_bfloat16_are_summed_in_float32(tiny_source: Source) -> None:
    mesh = sharding.make_mesh("")
    options = {"param_dtype": "bfloat16", "scan_layers": True, "mesh": mesh}
    graph, params = parameters.split(pretrained.build(tiny_source, **options))
    row = {name: x[:1] for name, x in next(batches(CONFIG)).items()}
    # The same row 512 times: a sum in bfloat16 would no longer grow at 256.
    many = {name: np.repeat(x, 512, axis=0) for name, x in row.items()}
    _, one = gradients(graph, params, place(row), 1)
    _, mean = gradients(graph, params, place(many), 512)
    for wanted, found in zip(*map(jax.tree.leaves, (one, mean)), strict=True):
        assert found.dtype == wanted.dtype == "bfloat16"
        wanted, found = (np.asarray(x, np.float32) for x in (wanted, found))
        np.testing.assert_allclose(found, wanted, rtol=0.02, atol=1e-6)


@pytest.fixture(params=["adamw", "mofo"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_step(
    built: Built,
    params: dict[str, Any],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph, start = built
    transformation = make(name, CONFIG, 1e-3)
    state = init_state(transformation, params)
    step = make_step(graph, transformation, 1, params, state)
    batch = place(next(batches(CONFIG)))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        new, new_state, metrics = step(params, state, batch)
        assert "Compiling" in caplog.text
        caplog.clear()
    # Donated, and given back in the same order with the same structure.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert parameters.shardings(new) == parameters.shardings(start)
    moved = [
        np.count_nonzero(np.asarray(one) != np.asarray(two))
        for one, two in zip(jax.tree.leaves(new), jax.tree.leaves(start), strict=True)
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    assert float(metrics["moved_fraction"]) == pytest.approx(sum(moved) / size)
    expected = {"adamw": 0.8, "mofo": 0.1}[name]
    assert expected < sum(moved) / size <= expected + 0.2
    # The compilers of older versions fuse both in other ways, down to the last bits.
    if jax.__version_info__ >= (0, 10):
        check_the_guard_changes_nothing(built, transformation, batch, (new, new_state))
    # The second step finds everything where the first left it: nothing is compiled.
    with jax.log_compiles(), caplog.at_level("WARNING"):
        new, new_state, metrics = step(new, new_state, batch)
        assert metrics["finite"]
        check_a_step_without_gradients(step, new, new_state, batch)
    assert "Compiling" not in caplog.text


def test_a_step_of_bfloat16_parameters(tiny_source: Source) -> None:
    settings = dataclasses.replace(CONFIG, param_dtype="bfloat16", schedule="constant")
    model = pretrained.build(
        tiny_source,
        param_dtype="bfloat16",
        scan_layers=True,
        mesh=sharding.make_mesh(""),
    )
    graph, params = parameters.split(model)
    transformation = make("mofo", settings, 1e-3)
    state = init_state(transformation, params)
    step = make_step(graph, transformation, 1, params, state)
    batch = place(next(batches(settings)))
    losses = []
    for _ in range(3):
        params, state, metrics = step(params, state, batch)
        assert metrics["finite"]
        assert float(metrics["gradient_norm"]) > 0
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    masters = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert {leaf.dtype.name for leaf in masters} == {"float32"}


def check_the_guard_changes_nothing(
    built: Built,
    transformation: optax.GradientTransformationExtraArgs,
    batch: Any,
    stepped: tuple[Any, State],
) -> None:
    """The step without the guard, compiled apart from the gradients, has its bits."""
    graph, start = built

    @jax.jit
    def move(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    _, grads = jax.jit(lambda params: gradients(graph, params, batch, 1))(start)
    params, state = move(grads, transformation.init(start), start)
    assert_same_bits((stepped[0], stepped[1].optimizer), (params, state))


def check_a_step_without_gradients(
    step: Step, params: Any, state: Any, batch: Any
) -> None:
    """Loss and gradients that are not finite move nothing, in parameters or state."""
    before = parameters.to_host((params, state))
    before[0]["final_norm"]["scale"][0] = np.nan
    given = jax.device_put(before, parameters.shardings((params, state)))
    params, state, metrics = step(*given, batch)
    # As numbers: asking JAX would compile the question.
    assert not float(metrics["finite"])
    assert np.isnan(float(metrics["loss"]))
    assert float(metrics["moved_fraction"]) == 0
    kept = params, state.optimizer
    jax.tree.map(np.testing.assert_array_equal, kept, (before[0], before[1].optimizer))


def own_covariances(built: Built) -> Any:
    """Returns covariances on texts that stand for the model's own."""
    graph, params = built
    texts = own_text.batch(own_texts([20] * 8), 32)
    return information.covariances(graph, params, [texts], place)


@pytest.mark.parametrize(
    "name", ["mofo", pytest.param("mofo_inverse_covariance", marks=pytest.mark.nightly)]
)
def test_an_interrupted_arm_ends_as_an_unbroken_one(
    built: Built,
    params: dict[str, Any],
    name: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, start = built
    arm = Arm(name, name, 1e-3, replay=False)
    known = own_covariances(built) if name in NEEDS else None

    def once(run: pathlib.Path, params: Any) -> tuple[Any, Position]:
        with ArmFiles(run, name, arm.peak) as files:
            given = train.Given(batches(CONFIG), place, information=known)
            found = train.train(CONFIG, arm, graph, params, given, files)
            metrics[run.name] = files.metrics()
        return found

    metrics: dict[str, list[dict[str, Any]]] = {}
    unbroken, position = once(tmp_path / "unbroken", params)
    logged = interrupt(monkeypatch)
    host = parameters.to_host(start)
    where = parameters.shardings(start)
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "broken", parameters.place(host, where))
    resumed, again = once(tmp_path / "broken", parameters.place(host, where))
    assert logged == [1, 2, 3, 3, 4]
    assert again.step == position.step == 4
    assert again.tokens == position.tokens > 0
    assert checksums.of_tree(resumed) == checksums.of_tree(unbroken)
    losses = [[row["loss"] for row in rows] for rows in metrics.values()]
    assert losses[0] == losses[1]
    # The copy that arms start from is as it was.
    assert checksums.of_tree(host) == checksums.of_tree(start)


def test_covariances_are_freed_once_the_state_is_made(
    built: Built,
    params: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, _ = built
    arm = Arm("inverse_covariance", "inverse_covariance", 1e-3, replay=False)
    known = [own_covariances(built)]
    matrices = [weakref.ref(matrix) for matrix in jax.tree.leaves(known)]
    alive = []

    def make_step(*_: Any) -> Any:
        gc.collect()
        alive.append([ref() for ref in matrices])
        raise KeyboardInterrupt

    def given() -> train.Given:
        return train.Given(batches(CONFIG), place, information=known.pop())

    monkeypatch.setattr(train, "make_step", make_step)
    files = ArmFiles(tmp_path, arm.name, arm.peak)
    with files, pytest.raises(KeyboardInterrupt):
        train.train(CONFIG, arm, graph, params, given(), files)
    assert len(matrices) > 3
    assert alive == [[None] * len(matrices)]


@pytest.mark.nightly
@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 1),
    reason="jax.nn.dot_product_attention gives NaN in float64 for a row of nothing",
)
def test_meshes_move_the_same_coordinates() -> None:
    """In float64, where no rounding turns a selection over."""
    flags = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    flags["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    shown = subprocess.run(
        [sys.executable, "-m", "tests.finetune.meshes"],
        cwd=small.ROOT,
        env={**small.os.environ, **flags},
        capture_output=True,
        text=True,
        check=True,
    )
    one, other = json.loads(shown.stdout)
    assert 0.14 < one["moved"] < 0.3
    assert other["split"], "the mesh must split parameters"
    assert other["coordinates"] == one["coordinates"]
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-6)
