"""Questions with four choices, scored by the likelihood of each choice.

A question's choices share one row: the prompt, followed by all choices. Each choice
attends to the prompt and itself, with positions that follow the prompt's. The scores
are those of separate rows per choice, for a third of the tokens.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.data.batches import Batch, round_up
from examples.finetune.data.encoding import ChatTokenizer, following
from examples.finetune.data.retention import Question
from examples.finetune.evaluation.token_losses import TOKENS
from examples.finetune.model.sharding import Place, by_parts, row_shards
from examples.finetune.system.hosts import fetch

CHOICES = 4
# Rows are padded to a multiple of this, to compile for few shapes.
LENGTH_STEP = 16

Pair = tuple[jax.Array, jax.Array]


class Row(NamedTuple):
    """A question as tokens: the prompt, and the continuation of each choice."""

    prompt: list[int]
    choices: list[list[int]]
    answer: int

    @property
    def length(self) -> int:
        """The number of tokens of the prompt and of all choices."""
        return len(self.prompt) + sum(map(len, self.choices))


def encode(questions: Sequence[Question], tokenizer: ChatTokenizer) -> list[Row]:
    """Tokenises questions as `Question: ...`, `Answer:` and each choice after a space.

    Args:
      questions: questions with four choices each.
      tokenizer: the model's tokenizer.
    """
    rows = []
    for question in questions:
        prompt = f"Question: {question.question}\nAnswer:"
        ids = tokenizer.encode_from_start(prompt)
        choices = [
            following(ids, prompt, f"{prompt} {choice}", tokenizer)
            for choice in question.choices
        ]
        rows.append(Row(ids, choices, question.answer))
    return rows


def batches(
    rows: Sequence[Row],
    batch_size: int,
    pad_id: int,
    *,
    length: int | None = None,
    targets: int | None = None,
) -> list[Batch]:
    """Arranges rows in batches of one shape, the last one completed with empty rows.

    Args:
      rows: the questions, at least one.
      batch_size: rows of a batch.
      pad_id: the padding token.
      length: T; by default the longest row's length, rounded up to a multiple of 16.
      targets: C; by default the greatest number of tokens in a row's choices.

    Returns:
      Dicts of `tokens`, `positions` int32 [B, T]; `groups` int32 [B, T], 0 for
      padding, 1 for the prompt, 2 to 5 for the choices; and for each choice token
      `sources` (the place from which it is predicted), `targets` (its id) and `owners`
      (its choice, CHOICES for padding), int32 [B, C].
    """
    longest = max(row.length for row in rows)
    length = length or round_up(longest, LENGTH_STEP)
    targets = targets or max(sum(map(len, row.choices)) for row in rows)
    made = []
    for start in range(0, len(rows), batch_size):
        batch = {
            "tokens": np.full((batch_size, length), pad_id, np.int32),
            "positions": np.zeros((batch_size, length), np.int32),
            "groups": np.zeros((batch_size, length), np.int32),
            "sources": np.zeros((batch_size, targets), np.int32),
            "targets": np.zeros((batch_size, targets), np.int32),
            "owners": np.full((batch_size, targets), CHOICES, np.int32),
        }
        for number, row in enumerate(rows[start : start + batch_size]):
            _fill({name: array[number] for name, array in batch.items()}, row)
        made.append(batch)
    return made


def _fill(arrays: Mapping[str, np.ndarray], row: Row) -> None:
    end = len(row.prompt)
    arrays["tokens"][:end] = row.prompt
    arrays["positions"][:end] = np.arange(end)
    arrays["groups"][:end] = 1
    slot, scored = end, 0
    for choice, ids in enumerate(row.choices):
        here = slice(slot, slot + len(ids))
        arrays["tokens"][here] = ids
        arrays["positions"][here] = end + np.arange(len(ids))
        arrays["groups"][here] = 2 + choice
        targets = slice(scored, scored + len(ids))
        # A choice's first token is predicted by the prompt's last one.
        arrays["sources"][targets] = [end - 1, *range(slot, slot + len(ids) - 1)]
        arrays["targets"][targets] = ids
        arrays["owners"][targets] = choice
        slot, scored = slot + len(ids), scored + len(ids)


def shared_prefix_mask(groups_BxT: jax.Array) -> jax.Array:
    """Returns a mask in which each token attends to the prompt and its own choice.

    Args:
      groups_BxT: int32; 0 for padding, 1 for the prompt, larger numbers for choices.

    Returns:
      bool [B, T, T] (query, key).
    """
    query_BxTx1, key_Bx1xT = groups_BxT[:, :, None], groups_BxT[:, None, :]
    seen_BxTxT = (key_Bx1xT == query_BxTx1) | (key_Bx1xT == 1)
    real_BxTxT = (query_BxTx1 != 0) & (key_Bx1xT != 0)
    return seen_BxTxT & real_BxTxT & jnp.tri(groups_BxT.shape[1], dtype=bool)[None]


@functools.partial(jax.jit, static_argnames="graph")
def scores(
    graph: nnx.GraphDef, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Returns the summed log-likelihood of each choice.

    Args:
      graph: the model's structure.
      params: its parameters.
      batch: a batch from `batches`.

    Returns:
      float32 [B, CHOICES].
    """
    return scores_and_greedy(graph, params, batch)[0]


@functools.partial(jax.jit, static_argnames="graph")
def scores_and_greedy(
    graph: nnx.GraphDef, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-likelihood of each choice, and whether it is the greedy decoding.

    Args:
      graph: the model's structure.
      params: its parameters.
      batch: a batch from `batches`.

    Returns:
      float32 and bool, [B, CHOICES] each; an empty choice has 0 and True.
    """
    model = nnx.merge(graph, params)
    hidden_BxTxD = model.hidden(
        batch["tokens"], batch["positions"], shared_prefix_mask(batch["groups"])
    )

    def predict(places: Pair) -> Pair:
        # Only positions that predict a choice's token go through the head.
        sources_BxCx1, targets_BxCx1 = (place[:, :, None] for place in places)
        hidden_BxCxD = jnp.take_along_axis(hidden_BxTxD, sources_BxCx1, axis=1)
        logits_BxCxV = model.logits(hidden_BxCxD)
        logs_BxCxV = jax.nn.log_softmax(logits_BxCxV)
        logs_BxCx1 = jnp.take_along_axis(logs_BxCxV, targets_BxCx1, axis=2)
        return logs_BxCx1, jnp.argmax(logits_BxCxV, axis=2) != places[1]

    places_BxC = batch["sources"], batch["targets"]
    tokens = TOKENS * row_shards(model.mesh)
    logs_BxCx1, missed_BxC = by_parts(predict, places_BxC, tokens)
    owners_BxCxO = jax.nn.one_hot(batch["owners"], CHOICES, dtype=logs_BxCx1.dtype)
    missed_BxCxO = missed_BxC[:, :, None] & (owners_BxCxO > 0)
    return jnp.sum(logs_BxCx1 * owners_BxCxO, axis=1), ~jnp.any(missed_BxCxO, axis=1)


def accuracy(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    rows: Sequence[Row],
    prepared: Sequence[Batch],
    place: Place,
) -> float:
    """Returns the share of rows whose answer is the most likely choice.

    Args:
      graph: the model's structure.
      params: its parameters.
      rows: the questions, at least one.
      prepared: the `batches` of the questions.
      place: a function that puts a batch on the devices.
    """
    all_scores = [fetch(scores(graph, params, place(batch))) for batch in prepared]
    chosen = np.concatenate(all_scores)[: len(rows)].argmax(axis=1)
    return float(np.mean(chosen == np.array([row.answer for row in rows])))
