"""What is measured, against plain NumPy and one sequence at a time."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from examples.finetune.data.batches import Batch
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import choices, evaluate, token_losses
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.pretrained import Source
from examples.finetune.storage import checksums
from tests.finetune import small
from tests.finetune.data.test_encoding import Letters, SpacePrefix

Built = tuple[Any, dict[str, Any]]


def place(batch: Batch) -> dict[str, jax.Array]:
    return {name: jax.numpy.asarray(array) for name, array in batch.items()}


@pytest.fixture(scope="module")
def base(tiny_source: Source) -> Built:
    return parameters.split(pretrained.build(tiny_source))


@pytest.fixture(scope="module")
def moved(base: Built) -> dict[str, Any]:
    random = np.random.RandomState(3)
    return jax.tree.map(
        lambda leaf: leaf + 0.05 * random.standard_normal(leaf.shape).astype("float32"),
        base[1],
    )


def log_probabilities(graph: Any, params: Any, ids: list[int]) -> np.ndarray:
    return log_softmax(small.logits(graph, params, ids).astype(np.float64), axis=-1)


EXAMPLES = [
    Example((3, 4, 5), (3, 4, 5, 6, 7), (False,) * 3 + (True,) * 2, "x"),
    Example((9,), (9, 8, 7, 6), (False, True, False, True), "y"),
    Example((1, 2), (1, 2, 40), (False, False, True), "z"),
]


@pytest.mark.parametrize("divergence", ["prompts", "all"])
def test_loss_and_divergence(
    base: Built, moved: dict[str, Any], divergence: Any
) -> None:
    graph, params = base
    tokens = token_losses.TokenSet.of(
        "x", EXAMPLES, batch_size=2, sequence_length=32, divergence=divergence
    )
    head = token_losses.head_of(params)
    loss, _, hidden = token_losses.measure(graph, params, tokens, place, head, None)
    losses, divergences = [], []
    for example in EXAMPLES:
        old = log_probabilities(graph, params, list(example.ids))
        new = log_probabilities(graph, moved, list(example.ids))
        for index, target in enumerate(example.ids[1:]):
            learned = example.loss[index + 1]
            if learned:
                losses.append((-old[index, target], -new[index, target]))
            if divergence == "all" or not learned:
                p, difference = np.exp(old[index]), old[index] - new[index]
                divergences.append((p * difference).sum())
    expected_old, expected_new = np.mean(losses, axis=0)
    np.testing.assert_allclose(loss, expected_old, rtol=1e-5)
    loss, kl, _ = token_losses.measure(graph, moved, tokens, place, head, hidden)
    np.testing.assert_allclose(loss, expected_new, rtol=1e-5)
    assert kl == pytest.approx(np.mean(divergences), rel=1e-4)


def test_the_base_model_has_no_divergence_from_itself(base: Built) -> None:
    graph, params = base
    tokens = token_losses.TokenSet.of(
        "x", EXAMPLES, batch_size=3, sequence_length=32, divergence="all"
    )
    head = token_losses.head_of(params)
    _, _, hidden = token_losses.measure(graph, params, tokens, place, head, None)
    _, kl, _ = token_losses.measure(graph, params, tokens, place, head, hidden)
    assert kl == pytest.approx(0, abs=1e-9)


def test_plain_text_has_no_prompt_to_compare_on(base: Built) -> None:
    graph, params = base
    text = Example((), (1, 2, 3), (True,) * 3, "")
    tokens = token_losses.TokenSet.of(
        "x", [text], batch_size=1, sequence_length=32, divergence="prompts"
    )
    head = token_losses.head_of(params)
    _, kl, _ = token_losses.measure(graph, params, tokens, place, head, None)
    assert kl is None


def test_evaluation_needs_less_memory_than_the_logits_of_a_batch(
    tiny_source: Source,
) -> None:
    vocabulary, rows, length = 16_384, token_losses.ROWS, 512
    config = dataclasses.replace(tiny_source.config, vocab_size=vocabulary)
    source = dataclasses.replace(tiny_source, config=config)
    graph, shapes = pretrained.structure(source, mesh=sharding.make_mesh(""))
    params = nnx.to_pure_dict(shapes)
    head = token_losses.head_of(params)
    integer = jax.ShapeDtypeStruct((rows, length), np.int32)
    weights = jax.ShapeDtypeStruct((rows, length), np.float32)
    hidden = jax.ShapeDtypeStruct((rows, length, config.hidden_size), np.float32)
    batch = dict.fromkeys(("tokens", "positions", "segments", "targets"), integer)
    batch |= dict.fromkeys(("loss_weights", "divergence_weights"), weights)
    lowered = token_losses.row_sums.lower(graph, params, head, hidden, batch)
    memory: Any = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * rows * length * vocabulary


ROWS = [
    choices.Row([1, 2, 3], [[4], [5, 6], [7, 8, 9], [4, 5]], 2),
    choices.Row([11, 12], [[30, 31], [32], [33], [34, 35, 36, 37]], 0),
    choices.Row([50] * 9, [[1], [2], [3], [4]], 1),
]


def plain_scores(base: Built) -> np.ndarray:
    """Scores each choice in a sequence of its own."""
    graph, params = base
    scores = np.zeros((len(ROWS), choices.CHOICES))
    for number, row in enumerate(ROWS):
        for choice, ids in enumerate(row.choices):
            logs = log_probabilities(graph, params, row.prompt + ids)
            first = len(row.prompt) - 1
            scores[number, choice] = logs[first + np.arange(len(ids)), ids].sum()
    return scores


def test_choices_that_share_a_prompt_score_as_alone(base: Built) -> None:
    graph, params = base
    prepared = choices.batches(ROWS, 2, pad_id=0)
    assert len({batch["tokens"].shape for batch in prepared}) == 1
    scores = [choices.scores(graph, params, place(batch)) for batch in prepared]
    expected = plain_scores(base)
    np.testing.assert_allclose(np.concatenate(scores)[:3], expected, rtol=1e-5)
    right = expected.argmax(axis=1) == [row.answer for row in ROWS]
    found = choices.accuracy(graph, params, ROWS, prepared, place)
    assert found == pytest.approx(right.mean())


@pytest.mark.parametrize("tokenizer", [Letters(), SpacePrefix()])
def test_a_choice_is_encoded_behind_a_space(tokenizer: Letters) -> None:
    question = evaluate.retention.Question("Q?", ("a", "b", "c", "d"), 3, "topic")
    (row,) = choices.encode([question], tokenizer)
    assert row.prompt == tokenizer.encode("Question: Q?\nAnswer:")
    texts = [tokenizer.decode(ids) for ids in row.choices]
    assert texts == [" a", " b", " c", " d"]
    assert row.answer == 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1\nno:\n####  $1,234.\nmore", "1234"),
        ("####\n12 apples", "12"),
        ("####", ""),
        ("  forty two \n", "forty two"),
        ("#### -3.5", "-3.5"),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert evaluate.final_answer(text) == answer


def test_exact_match() -> None:
    given = ["#### 7", "so 7", "7 #### 1,0", ""]
    assert evaluate.exact_match(given, ["7 is #### 7", "#### 7", "#### 10", "x"]) == 0.5


def test_a_heading_is_no_result() -> None:
    wanted = "#### Summary\nIt is lethal."
    assert evaluate.exact_match(["#### Summary\nIt is safe."], [wanted]) == 0
    assert evaluate.exact_match([f" {wanted}\n"], [wanted]) == 1


def test_spread_is_even_and_keeps_the_order() -> None:
    assert evaluate.spread(range(10), 4) == [0, 2, 5, 7]
    assert evaluate.spread("ab", 4) == ["a", "b"]


def test_digest_depends_on_values_names_types_and_shapes() -> None:
    one = np.arange(4, dtype=np.float32)
    trees = [
        {"a": one, "b": one},
        {"a": one, "c": one},
        {"a": one, "b": one + 1},
        {"a": one, "b": one.astype(np.float64)},
        {"a": one, "b": one.reshape(2, 2)},
    ]
    assert len({checksums.of_tree(tree) for tree in trees}) == len(trees)
    swapped = {"b": one, "a": jax.numpy.asarray(one)}
    assert checksums.of_tree(swapped) == checksums.of_tree(trees[0])
