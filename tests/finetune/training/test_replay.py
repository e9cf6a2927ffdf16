"""Replay: the divergence against NumPy, its memory, its order, and resumed runs."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from examples.finetune.command.config import Arm
from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import round_up
from examples.finetune.evaluation import token_losses
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.pretrained import Source
from examples.finetune.storage import checksums
from examples.finetune.storage.checkpoints import ArmFiles
from examples.finetune.training import own_text, replay, train
from examples.finetune.training.step import gradients
from tests.finetune import small
from tests.finetune.arms import CONFIG, batches, interrupt, place
from tests.finetune.meshes import one_device
from tests.finetune.model.test_lora import build as build_adapted
from tests.helpers import random_generator

LENGTH = CONFIG.sequence_length
ROWS = 2


def texts(count: int = 6) -> list[own_text.Text]:
    """Returns texts of several lengths, the first tokens of some not the model's."""
    rng = random_generator(3)
    lengths = [24, 7, 15, 24, 11, 9][:count]
    # Every one has a token that the model wrote.
    return [
        own_text.Text([int(i) for i in rng.integers(0, 256, length)], 1 + length // 4)
        for length in lengths
    ]


class Model:
    """The tiny model's parameters and those of a base model that differs from it."""

    def __init__(
        self, source: Source, mesh: str = "", devices: int | None = None
    ) -> None:
        self.mesh = one_device() if devices == 1 else sharding.make_mesh(mesh)
        self.spec = sharding.batch_sharding(self.mesh)
        built = pretrained.build(source, scan_layers=True, mesh=self.mesh)
        self.graph, self.base = parameters.split(built)
        rng = random_generator(4)
        host = parameters.to_host(self.base)
        moved = jax.tree.map(
            lambda x: x + np.float32(0.02) * rng.standard_normal(x.shape, np.float32),
            host,
        )
        self.params = parameters.place(moved, parameters.shardings(self.base))
        self.texts = texts()
        rows = own_text.batch(self.texts, LENGTH)
        size = round_up(token_losses.ROWS, sharding.row_shards(self.mesh))
        place = self.place
        hidden = token_losses.hidden_states(self.graph, self.base, rows, place, size)
        self.replayed = replay.Texts(self.texts, LENGTH, hidden, seed=1)

    def place(self, batch: Any) -> Any:
        return sharding.place_batch(batch, self.spec)

    def term(self, step: int, weight: float, rows: int = ROWS) -> replay.Term:
        count = round_up(rows, sharding.row_shards(self.mesh))
        return replay.Term(
            self.place(self.replayed.at(step, count)),
            replay.head(self.base, None),
            jnp.float32(weight),
        )


@pytest.fixture(scope="module")
def model(tiny_source: Source) -> Model:
    return Model(tiny_source)


def divergence_by_hand(model: Model, rows: Any) -> float:
    """Returns the mean divergence of a batch of texts, in float64."""
    found = []
    for ids, mask in zip(rows["tokens"], rows["loss_mask"], strict=True):
        ours, base = (
            small.logits(model.graph, params, ids.tolist()).astype(np.float64)
            for params in (model.params, model.base)
        )
        logs, base_logs = (log_softmax(x, axis=-1) for x in (ours, base))
        each = (np.exp(base_logs) * (base_logs - logs)).sum(-1)
        # Position t predicts the token at t + 1.
        found += [each[t - 1] for t in range(1, len(ids)) if mask[t]]
    return float(np.mean(found))


def test_the_term_is_the_mean_divergence_from_the_base_model(model: Model) -> None:
    batch = place(next(batches(CONFIG)))
    term = model.term(1, 3.0)
    means, _ = gradients(model.graph, model.params, batch, 1, term=term)
    wanted = divergence_by_hand(model, model.replayed.at(1, ROWS))
    assert wanted > 1e-3
    assert float(means["replay_kl"]) == pytest.approx(wanted, rel=1e-3)
    alone, _ = gradients(model.graph, model.params, batch, 1)
    assert float(means["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)


def test_its_gradient_is_the_weight_times_that_of_the_divergence(model: Model) -> None:
    batch = place(next(batches(CONFIG)))
    found = {
        weight: gradients(
            model.graph, model.params, batch, 1, term=model.term(1, weight)
        )[1]
        for weight in (0.0, 1.0, 3.0)
    }
    _, alone = gradients(model.graph, model.params, batch, 1)

    def close(x: Any, y: Any) -> None:
        scale = max(float(np.abs(y).max()), 1e-3)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * scale)

    jax.tree.map(close, found[0.0], alone)
    tripled = jax.tree.map(lambda x, y: y + 3 * (x - y), found[1.0], alone)
    jax.tree.map(close, found[3.0], tripled)
    # At the base model itself there is nothing to gain.
    means, gradient = gradients(
        model.graph, model.base, batch, 1, term=model.term(1, 1.0)
    )
    assert abs(float(means["replay_kl"])) < 1e-6
    jax.tree.map(close, gradient, gradients(model.graph, model.base, batch, 1)[1])


@pytest.mark.nightly
def test_accumulated_passes_give_the_same(model: Model) -> None:
    settings = dataclasses.replace(CONFIG, accumulation_steps=2)
    batch = place(next(batches(settings)))
    term = model.term(1, 2.0, rows=4)
    whole = gradients(model.graph, model.params, batch, 1, term=term)
    parts = gradients(model.graph, model.params, batch, 2, term=term)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-6),
        whole,
        parts,
    )


@pytest.mark.parametrize("batch_rows", [1, 2, 8])
def test_the_divergence_does_not_depend_on_the_parts(
    model: Model, batch_rows: int
) -> None:
    term = model.term(2, 1.0, rows=4)

    @jax.jit
    def found(params: Any) -> jax.Array:
        built = nnx.merge(model.graph, params)
        base = replay.base_model(model.graph, (params, None), term)
        names = ("tokens", "positions", "segments")
        tokens, positions, segments = (term.rows[name] for name in names)
        hidden = built.hidden(tokens, positions, causal_mask(segments))
        return replay.summed_divergence(built, base, hidden, term.rows, batch_rows)

    rows = model.replayed.at(2, 4)
    count = sum(int(row[1:].sum()) for row in rows["loss_mask"])
    wanted = divergence_by_hand(model, rows)
    assert float(found(model.params)) / count == pytest.approx(wanted, rel=1e-3)


def test_memory_grows_by_no_more_than_the_logits_of_a_batch(
    tiny_source: Source,
) -> None:
    vocabulary, batch_rows, length, own_rows = 16_384, 8, 32, 4
    config = dataclasses.replace(tiny_source.config, vocab_size=vocabulary)
    source = dataclasses.replace(tiny_source, config=config)
    mesh = sharding.make_mesh("")
    graph, shapes = pretrained.structure(source, scan_layers=True, mesh=mesh)
    params = nnx.to_pure_dict(shapes)

    def rows(number: int, **others: Any) -> dict[str, Any]:
        integer = jax.ShapeDtypeStruct((number, length), jnp.int32)
        truth = jax.ShapeDtypeStruct((number, length), jnp.bool_)
        names = ("tokens", "positions", "segments")
        return dict.fromkeys(names, integer) | {"loss_mask": truth} | others

    hidden = jax.ShapeDtypeStruct((own_rows, length, config.hidden_size), jnp.float32)
    term = replay.Term(
        rows(own_rows, base_hidden=hidden),
        token_losses.head_of(params),
        jax.ShapeDtypeStruct((), jnp.float32),
    )

    def temporary(term: replay.Term | None) -> int:
        def step(params: Any, batch: Any, term: Any) -> Any:
            return gradients(graph, params, batch, 1, term=term)

        compiled = jax.jit(step).lower(params, rows(batch_rows), term).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    logits = 4 * batch_rows * length * vocabulary
    assert temporary(term) - temporary(None) < 1.1 * logits


def test_the_order_depends_on_the_step_alone_and_every_text_comes_once_an_epoch(
    model: Model,
) -> None:
    texts = model.replayed
    tokens = [texts.at(step, ROWS)["tokens"] for step in range(1, 7)]
    for epoch in (tokens[:3], tokens[3:]):
        drawn = {tuple(row) for rows in epoch for row in rows.tolist()}
        assert len(drawn) == 6
    assert not np.array_equal(tokens[:3], tokens[3:])
    np.testing.assert_array_equal(texts.at(5, ROWS)["tokens"], tokens[4])
    # Processes make their own rows of the same batch.
    np.testing.assert_array_equal(texts.at(5, ROWS, [1])["tokens"], tokens[4][1:])


@pytest.mark.nightly
@pytest.mark.parametrize(
    "adapted",
    [
        pytest.param(False, id="parameters"),
        pytest.param(True, id="lora"),
    ],
)
def test_an_interrupted_arm_with_replay_ends_as_an_unbroken_one(
    model: Model,
    tiny_source: Source,
    adapted: bool,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = Arm("mofo+replay", "mofo", 1e-3, replay=True)
    built = build_adapted(tiny_source, scan=True)
    graph, (start, frozen) = built.graph, (built.params, None)
    if adapted:
        graph, (start, frozen) = built.trained.graph, built.trained.begin(built.params)
    host, where = parameters.to_host(start), parameters.shardings(start)

    def term(step: int) -> replay.Term:
        return model.term(step, 2.0)

    def once(name: str) -> str:
        given = train.Given(batches(CONFIG), place, frozen, term=term)
        with ArmFiles(tmp_path / name, arm.name, arm.peak) as files:
            params = parameters.place(host, where)
            found, _ = train.train(CONFIG, arm, graph, params, given, files)
            divergences.append([row["replay_kl"] for row in files.metrics()])
        return checksums.of_tree(found)

    divergences: list[list[float]] = []
    unbroken = once("unbroken")
    interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        once("broken")
    assert once("broken") == unbroken
    assert divergences[0] == divergences[1]
    assert divergences[0][0] < 1e-6 < divergences[0][-1]


def test_texts_are_kept_and_share_no_passage_with_those_that_are_measured(
    model: Model,
    tiny_source: Source,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = own_text.Writer(
        model.graph, model.base, tiny_source.tokenizer, model.place, 64, seed=5
    )
    written = own_text.kept(tmp_path, writer, 12, [])
    assert len(written) == 12
    for text in written:
        assert text.given < len(text.ids) <= 64
    # A third of those that are drawn continue the opening of a user's turn, unless they
    # are empty.
    opening = tiny_source.tokenizer.encode("<|begin|><|start|>user\n")
    assert sum(text.ids[: len(opening)] == opening for text in written) >= 2
    assert own_text.kept(tmp_path, writer, 12, []) == written
    with pytest.raises(InputError, match="has 12 texts and 5 are needed"):
        own_text.kept(tmp_path, writer, 5, [])
    # A text that is measured is not among them, wherever its passage stands.
    longest = max(written, key=lambda text: len(text.ids))
    measured = [[7, 8, *longest.ids, 9]]
    assert longest not in writer.texts(12, measured)
    # The last round counts too.
    monkeypatch.setattr(own_text, "ROUNDS", 1)
    assert writer.texts(1) == written[:1]
    # Texts may be too short for a conversation and for every opening.
    short = writer._replace(length=3, row_multiple=4).texts(5)
    assert [(text.given, len(text.ids)) for text in short] == [(1, 3)] * 5
    path = tmp_path / own_text.FILE
    path.write_text(path.read_text().replace('"given": 1', '"given": 2', 1))
    with pytest.raises(InputError, match="is damaged; remove it"):
        own_text.kept(tmp_path, writer, 12, [])
