"""LoRA: what is trained, what it computes, and what is left of it at the end."""

import dataclasses
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import mofo_jax
from examples.finetune.__main__ import main
from examples.finetune.command import config
from examples.finetune.command.errors import InputError
from examples.finetune.evaluation import evaluate
from examples.finetune.model import lora, parameters, pretrained, sharding
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.export import export
from examples.finetune.model.pretrained import Source
from examples.finetune.storage import checksums
from examples.finetune.training import information, own_text
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import State, init_state, make_step
from tests.finetune import small, tiny
from tests.finetune.arms import CONFIG, batches, own_texts, place

ADAPTER = lora.Adapter(rank=4, alpha=6.0)
PATHS = [
    *(f"attention/{name}" for name in ("query", "key", "value", "output")),
    *(f"mlp/{name}" for name in ("gate", "up", "down")),
]


class Built(NamedTuple):
    """The tiny model: as it is, and adapted."""

    graph: nnx.GraphDef
    params: dict[str, Any]
    trained: lora.Trained


def build(source: Source, scan: bool, description: str = "") -> Built:
    mesh = sharding.make_mesh(description)
    options: dict[str, Any] = {"scan_layers": scan, "mesh": mesh}
    graph, params = parameters.split(pretrained.build(source, **options))
    adapted = pretrained.structure(source, **options, adapter=ADAPTER)
    return Built(graph, params, lora.Trained(*adapted, ADAPTER, 0, mesh))


@pytest.fixture(scope="module", params=[False, True], ids=["list", "scanned"])
def built(request: pytest.FixtureRequest, tiny_source: Source) -> Built:
    return build(tiny_source, request.param)


def random_factors(built: Built, seed: int = 0) -> Any:
    """Returns factors as they may be after training."""
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.standard_normal(leaf.shape), leaf.dtype),
        built.trained.begin(built.params)[0],
    )


def logits(graph: nnx.GraphDef, *states: Any) -> np.ndarray:
    ids_BxT = tiny.token_ids()[:, :12]

    @jax.jit
    def run(*states: Any) -> jax.Array:
        positions_BxT = jnp.tile(jnp.arange(12)[None], (2, 1))
        mask_BxTxT = causal_mask(jnp.ones((2, 12), jnp.int32))
        return nnx.merge(graph, *states)(ids_BxT, positions_BxT, mask_BxTxT)

    return np.asarray(run(*states))


def test_factors_lie_beside_the_kernels_of_the_layers(built: Built) -> None:
    factors, frozen = built.trained.begin(built.params)
    assert frozen is built.params
    shapes = {path: leaf.shape for path, leaf in parameters.flat(factors).items()}
    kernels = parameters.flat(built.params)
    expected = {}
    for path, leaf in kernels.items():
        if path.startswith("layers/") and path.endswith("kernel"):
            *stack, inputs, outputs = leaf.shape
            place = path.removesuffix("kernel") + "lora/lora_"
            expected |= {f"{place}a": (*stack, inputs, 4)}
            expected |= {f"{place}b": (*stack, 4, outputs)}
    assert shapes == expected
    assert len(shapes) == (14 if "layers/mlp/up/kernel" in kernels else 42)


def test_at_the_start_nothing_has_changed(built: Built) -> None:
    factors, frozen = built.trained.begin(built.params)
    np.testing.assert_array_equal(
        logits(built.trained.graph, factors, frozen), logits(built.graph, built.params)
    )
    merged = built.trained.finish(factors, frozen)
    assert checksums.of_tree(merged) == checksums.of_tree(built.params)
    first = parameters.flat(factors)
    assert all(
        np.any(np.asarray(leaf)) == path.endswith("a") for path, leaf in first.items()
    )
    # Every pair of factors is drawn for itself.
    drawn = [np.asarray(leaf).ravel()[0] for p, leaf in first.items() if p[-1] == "a"]
    assert len(set(drawn)) == len(drawn)


def test_merging_adds_the_scaled_products_to_the_kernels(built: Built) -> None:
    factors = random_factors(built)
    merged = parameters.flat(built.trained.finish(factors, built.params))
    pairs = parameters.flat(factors)
    for path, old in parameters.flat(built.params).items():
        beside = path.removesuffix("kernel") + "lora/lora_"
        expected = np.asarray(old, np.float64)
        if f"{beside}a" in pairs:
            a, b = (np.asarray(pairs[beside + name], np.float64) for name in "ab")
            expected = expected + 6 / 4 * a @ b
        np.testing.assert_allclose(merged[path], expected, rtol=1e-6, atol=1e-7)
        assert merged[path].sharding == old.sharding


def test_merged_and_exported_it_computes_what_it_did(
    built: Built, tiny_source: Source, tmp_path: pathlib.Path
) -> None:
    factors = random_factors(built)
    adapted = logits(built.trained.graph, factors, built.params)
    merged = built.trained.finish(factors, built.params)
    np.testing.assert_allclose(logits(built.graph, merged), adapted, atol=2e-5)
    model = nnx.merge(built.graph, merged)
    export(model, tiny_source.tokenizer, tmp_path / "export")
    again = pretrained.build(pretrained.open_model(str(tmp_path / "export")))
    np.testing.assert_allclose(logits(*parameters.split(again)), adapted, atol=2e-5)
    assert np.abs(adapted - logits(built.graph, built.params)).max() > 0.1


def test_layers_begin_alike_scanned_or_not(tiny_source: Source) -> None:
    listed, scanned = (build(tiny_source, scan) for scan in (False, True))
    apart = parameters.flat(listed.trained.begin(listed.params)[0])
    stacked = parameters.flat(scanned.trained.begin(scanned.params)[0])
    for name in PATHS:
        for number in range(3):
            for factor in "ab":
                end = f"{name}/lora/lora_{factor}"
                np.testing.assert_allclose(
                    *(stacked[f"layers/{end}"][number], apart[f"layers/{number}/{end}"])
                )


def test_the_covariances_are_those_of_the_factors_inputs(built: Built) -> None:
    factors = random_factors(built)
    texts = [own_text.batch(own_texts([20] * 8), 32)]
    graph = built.trained.graph
    found = information.covariances(graph, factors, texts, place, built.params)
    merged = built.trained.finish(factors, built.params)
    kernels = information.covariances(built.graph, merged, texts, place)
    expected, pairs = parameters.flat(kernels), parameters.flat(factors)
    matrices = parameters.flat(found)
    assert {path.removesuffix("/matrix") for path in matrices} == pairs.keys()
    for path, matrix in matrices.items():
        inputs = expected[re.sub("lora/lora_.", "kernel", path)]
        inputs = np.asarray(inputs, np.float64)
        if path.endswith("b/matrix"):
            a = np.asarray(pairs[path.removesuffix("b/matrix") + "a"], np.float64)
            inputs = np.swapaxes(a, -1, -2) @ inputs @ a
        scale = np.abs(inputs).max()
        np.testing.assert_allclose(matrix, inputs, atol=1e-5 * scale)


class Run(NamedTuple):
    """Some steps on one batch: factors before and after, and what else they left."""

    start: Any
    factors: Any
    state: State
    metrics: list[dict[str, float]]


def train_some(built: Built, name: str, steps: int = 3) -> Run:
    scan = is_scanned(built)
    settings = dataclasses.replace(CONFIG, scan_layers=scan)
    factors, frozen = built.trained.begin(built.params)
    start = parameters.to_host(factors)
    transformation = make(name, settings, 1e-2)
    state = init_state(transformation, factors)
    step = make_step(built.trained.graph, transformation, 1, factors, state, frozen)
    batch, metrics = place(next(batches(settings))), []
    for _ in range(steps):
        factors, state, measured = step(factors, state, batch)
        metrics.append({key: float(value) for key, value in measured.items()})
    return Run(start, factors, state, metrics)


def is_scanned(built: Built) -> bool:
    return "mlp" in built.params["layers"]


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["adamw", "mofo"])
def test_only_the_factors_are_trained(tiny_source: Source, name: str) -> None:
    losses = []
    for scan in (False, True) if name == "adamw" else (True,):
        built = build(tiny_source, scan)
        before = checksums.of_tree(built.params)
        run = train_some(built, name)
        assert checksums.of_tree(built.params) == before
        losses.append([row["loss"] for row in run.metrics])
        assert losses[-1][2] < losses[-1][0] - 0.01
        number = sum(leaf.size for leaf in jax.tree.leaves(run.start))
        moments = [x.size for x in jax.tree.leaves(run.state.optimizer) if x.ndim]
        assert sum(moments) == 2 * number
        moved = mofo_jax.ever_moved_share(run.factors, run.start)["total"]
        assert moved > (0.9 if name == "adamw" else 0.15)
        if name == "mofo":
            check_fractions(run)
    # Scanned or not, the same is learned.
    np.testing.assert_allclose(losses[0], losses[-1], rtol=1e-4)


def check_fractions(run: Run, layers: int = 3) -> None:
    """In each layer's factor the fraction is selected."""
    for path, mask in parameters.flat(run.state.selected).items():
        counts = np.asarray(mask).reshape(layers, -1).sum(axis=1)
        assert set(counts) == {int(0.15 * mask.size / layers)}, path
    last = run.metrics[-1]
    shares = [last[f"selected_share/{kind}"] for kind in ("mlp", "attention")]
    np.testing.assert_allclose(shares, 0.15, atol=0.005)


@pytest.mark.nightly
def test_the_command_ends_with_report_pictures_and_a_merged_model(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = {"knowledge": 0.5, "prose": 2.0}
    measured = {"task_loss": 1.0, "task_accuracy": None, "retention": texts}
    measured["kl_to_base"] = {"prose": 0.5}

    def measure(graph: Any, params: Any, *_: Any) -> tuple[Any, Any, Any]:
        nnx.merge(graph, params)
        assert not any("lora" in path for path in parameters.flat(params))
        return measured, [], {}

    # What is measured is tested for itself, and takes long to compile.
    monkeypatch.setattr(evaluate, "measure", measure)
    model = small.write_model(tmp_path / "tiny-llama")
    run = tmp_path / "run"
    command = [*small.options(model, run), "--steps", "2", "--max-new-tokens", "0"]
    command += ["--lora", "4", "--lora-alpha", "8", "--optimizer", "mofo"]
    command += ["--export", str(tmp_path / "out")]
    assert main(command) == 0
    report = (run / "report.md").read_text()
    assert "LoRA of rank 4, alpha 8: what a step selects" in report
    assert "| relative distance, attention |" in report
    for name in ("training.png", "forgetting.png"):
        assert (run / name).stat().st_size > 10_000
    arm = json.loads((run / "summary.json").read_text())["arms"]["mofo"]
    assert set(arm["selected_share"]) == {"attention", "mlp"}
    # A factor's coordinate reaches a whole row or column of the kernel.
    assert arm["ever_moved"]["mlp"] > 0.2
    assert arm["distance"]["embedding"] == arm["distance"]["norm"] == 0
    file = tmp_path / "out/mofo/model.safetensors"
    original = tiny.tensors()
    for tensor, values in safetensors.numpy.load_file(file).items():
        same = np.array_equal(values, original[tensor])
        assert same != tensor.endswith("proj.weight"), tensor
    # The frozen model is in no checkpoint.
    saved = (run / "arms/mofo/checkpoints/2/params/_METADATA").read_text()
    assert "lora_b" in saved
    assert "kernel" not in saved
    assert "embed" not in saved
    # Finished, and exported once more from the checkpoint.
    exported = file.read_bytes()
    assert main(command) == 0
    assert "mofo is finished already" in capsys.readouterr().out
    assert file.read_bytes() == exported


def test_a_rank_above_the_kernels_is_refused(tiny_source: Source) -> None:
    lora.check_rank(lora.Adapter(32, 32), tiny_source.config)
    lora.check_rank(None, tiny_source.config)
    with pytest.raises(InputError, match=r"--lora must be at most 32, .* got 33"):
        lora.check_rank(lora.Adapter(33, 33), tiny_source.config)


def test_the_scale_is_one_if_no_alpha_is_given() -> None:
    assert lora.adapter_of(config.parse([])) is None
    adapter = lora.adapter_of(config.parse(["--lora", "8"]))
    assert adapter is not None
    assert adapter.scale == 1
    adapter = lora.adapter_of(config.parse(["--lora", "8", "--lora-alpha", "16"]))
    assert adapter is not None
    assert adapter.scale == 2
