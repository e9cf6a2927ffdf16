"""Directions at the start, on the tiny model and on matrices."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx

from examples.finetune.command.config import Config
from examples.finetune.data.batches import evaluation_batches, loss_targets
from examples.finetune.model.attention import causal_mask
from examples.finetune.training.optimizers import assemble
from examples.finetune.training.step import gradients
from examples.study import own_texts, pictures, screen, screening, texts
from examples.study.methods import OwnTexts
from examples.study.options import Options
from examples.study.study import Study, open_study
from examples.study.training import Course

TASK = "docstrings"


@pytest.fixture(scope="module")
def study(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of the smallest size, on the tiny model with its own weights."""
    output = tmp_path_factory.mktemp("results")
    made = open_study(Options(model=str(tiny_model), budget="smallest", output=output))
    made.__dict__["start"] = made.trainer.quantized  # Instead of the healed one.
    return made


def system(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a positive semidefinite matrix, a scale and a right-hand side."""
    random = np.random.RandomState(seed)
    root = random.normal(size=(6, 6))
    return root @ root.T, random.uniform(0.5, 2, 6), random.normal(size=6)


def test_conjugate_gradients_solve():
    matrix, scale, target = system(0)

    def product(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
        whole = matrix @ jnp.concatenate([tree["a"], tree["b"]])
        return {"a": whole[:2], "b": whole[2:]}

    def split(vector: np.ndarray) -> dict[str, jax.Array]:
        return {"a": jnp.array(vector[:2]), "b": jnp.array(vector[2:])}

    found = screen.solve(product, split(target), split(scale), 0.3, 12)
    wanted = np.linalg.solve(matrix + 0.3 * np.diag(scale), target)
    both = np.concatenate([found["a"], found["b"]])
    np.testing.assert_allclose(both, wanted, rtol=2e-2, atol=1e-3)
    # The first iterate is along the preconditioned target.
    first = screen.solve(product, split(target), split(scale), 0.3, 1)
    ratios = np.concatenate([first["a"], first["b"]]) / (target / scale)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


def test_conjugate_gradients_converge_at_once_with_the_inverse_between():
    matrix, scale, target = system(1)
    wanted = np.linalg.inv(matrix + 0.3 * np.diag(scale))
    between = np.sqrt(scale)[:, None] * wanted * np.sqrt(scale)

    def times(factor: np.ndarray) -> screen.Product:
        return lambda tree: {"a": factor @ tree["a"]}

    given = times(matrix), {"a": jnp.array(target)}, {"a": jnp.array(scale)}, 0.3, 1
    found = screen.solve(*given, times(between))["a"]
    np.testing.assert_allclose(found, wanted @ target, rtol=1e-3)


@pytest.mark.nightly
def test_the_fisher_product_is_that_of_the_predictions(study: Study):
    trainer = study.trainer
    start = trainer.begin(study.start)
    held_out = study.task(TASK).held_out[:2]
    (raw,) = evaluation_batches(held_out, batch_size=2, sequence_length=384)
    batch = trainer.place(raw)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(start)))
    leaves = [
        jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, jax.tree.leaves(start), strict=True)
    ]
    along = jax.tree.unflatten(jax.tree.structure(start), leaves)
    product = screen.fisher_product(trainer, start, [batch])(along)

    def logs(length: float) -> np.ndarray:
        moved = jax.tree.map(lambda a, b: a + length * b, start, along)
        model = nnx.merge(trainer.graph, moved)
        mask = causal_mask(batch["segments"])
        values = model(batch["tokens"], batch["positions"], mask)
        return np.asarray(jax.nn.log_softmax(values), np.float64)

    # The variance, under the model's predictions, of the log-likelihood's slope.
    slope = (logs(1e-3) - logs(-1e-3)) / 2e-3
    likely = np.exp(logs(0.0))
    variance = (likely * slope**2).sum(-1) - (likely * slope).sum(-1) ** 2
    counted = np.asarray(loss_targets(raw)[1])
    wanted = variance[counted].mean()
    assert float(screen.dot(along, product)) == pytest.approx(wanted, rel=2e-2)


@pytest.mark.nightly
def test_a_direction_is_the_optimizers_next_update(study: Study):
    trainer, task, config = study.trainer, study.task(TASK), Config()
    course = Course(task.training, task.length, 3, 1, 0)
    known = screen.moments(trainer, study.start, course, config)
    start = trainer.begin(study.start)
    for name in ("adamw", "mofo"):
        optimizer = assemble(name, config, lambda _: 1.0)
        state, update = optimizer.init(start), None
        for batch in trainer.batches(course):
            _, grads = gradients(trainer.graph, start, trainer.place(batch), 1)
            update, state = optimizer.update(grads, state, start)
        made = screen.direction(name, config, start, known)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            made,
            update,
        )
        share = np.mean([float(jnp.mean(leaf != 0)) for leaf in jax.tree.leaves(made)])
        assert (share < 0.5) == (name == "mofo")


@pytest.mark.nightly
def test_a_screen_measures_both_sides(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    monkeypatch.setattr(
        screening, "MADE", {"AdamW": ("adamw", {}), "MoFO 0.15": ("mofo", {})}
    )
    conjugate = {"from Adam": (0.1, None), "from the inverse": (0.1, 0.3)}
    monkeypatch.setattr(screening, "CONJUGATE", conjugate)
    monkeypatch.setattr(screening, "OWN_TEXTS", 6)
    monkeypatch.setattr(screening, "ITERATIONS", 2)
    file = screening.run(study, TASK)
    found = screening.read(file)
    assert [row["key"]["direction"] for row in found] == [
        "AdamW",
        "MoFO 0.15",
        *conjugate,
    ]
    for row in found:
        ahead, behind = (np.sum(row[side][TASK]["losses"]) for side in screening.SIDES)
        assert ahead < behind
        assert row["quadratic"] == pytest.approx(1, abs=0.3)
        drift = np.sum(row["ahead"]["prose"]["divergences"])
        assert drift / np.sum(row["counts"]["prose"]["divergences"]) == pytest.approx(
            screen.DRIFT, rel=0.6
        )
    ratio = screening.over_adamw(found[0], found[0], TASK, "prose")
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert screening.run(study, TASK).read_text() == file.read_text()
    inputs = found[1]["inputs"]
    assert 0.1 < sum(inputs["selected"]) / sum(inputs["weights"]) < 0.5
    assert len(screening.table(found)) == 2 + len(found)
    pictures.why(found, tmp_path / "why.png")
    assert matplotlib.image.imread(tmp_path / "why.png").shape[1] > 1000


def test_own_texts_begin_in_three_ways(study: Study):
    made = own_texts.write(study.trainer, study.start, OwnTexts(12))
    decode = study.trainer.source.tokenizer.decode
    begun = {len(text.ids) > 0 and decode(list(text.ids))[:12] for text in made}
    assert len(begun) >= 8
    assert all(0 < text.given < len(text.ids) for text in made)
    lines = own_texts.OPENINGS.read_text("utf-8").splitlines()
    messages = [line for line in lines if line.startswith(own_texts.MESSAGE)]
    assert len(messages) == len(lines) / 2
    asked = {line.removeprefix(own_texts.MESSAGE) for line in messages}
    assert not asked & set(texts.instructions(48))


@pytest.mark.nightly
def test_the_rule_spares_directions_of_the_starts_own_texts(study: Study):
    trainer, task = study.trainer, study.task(TASK)
    config = Config(covariance_damping=0.1)
    course = Course(task.training, task.length, 3, 1, 0)
    known = screen.moments(trainer, study.start, course, config)
    start = trainer.begin(study.start)
    covariances = study.information("inverse_covariance", OwnTexts())
    assert covariances is not None
    adam = screen.direction("adamw", config, start, known)
    rule = screen.direction("inverse_covariance", config, start, known, covariances)
    path = "layers", "mlp", "down", "kernel"

    def leaf(tree: Any) -> np.ndarray:
        for name in path:
            tree = tree[name]
        return np.asarray(tree, np.float64)

    kernel = covariances["layers"]["mlp"]["down"]["kernel"]
    for layer, matrix in enumerate(np.asarray(kernel.matrix, np.float64)):
        size = len(matrix)
        damped = np.eye(size) + matrix / (0.1 * np.trace(matrix) / size)
        wanted = np.linalg.solve(damped, leaf(adam)[layer])
        np.testing.assert_allclose(leaf(rule)[layer], wanted, rtol=1e-3, atol=1e-4)
