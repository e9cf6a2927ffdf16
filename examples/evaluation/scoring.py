"""The likelihood of continuations, given their contexts.

Continuations of one context share a row if that saves tokens, like the choices of a
question in `examples.finetune.evaluation.choices`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from examples.evaluation.batching import (
    SHORTEST,
    Advance,
    Placed,
    by_length,
    power_of_two,
)
from examples.finetune.command.errors import InputError
from examples.finetune.evaluation import choices


class Pair(NamedTuple):
    """Token ids: a context of at least one, and the continuation to score."""

    context: Sequence[int]
    continuation: Sequence[int]


class Shared(NamedTuple):
    """A row of a batch, and for each of its choices the index of the pair."""

    row: choices.Row
    pairs: list[int]

    @property
    def length(self) -> int:
        """The number of tokens in the row."""
        return self.row.length


def log_likelihoods(
    placed: Placed, pairs: Sequence[Pair], advance: Advance
) -> list[tuple[float, bool]]:
    """Scores pairs of context and continuation.

    Args:
      placed: the model.
      pairs: the pairs; contexts are cut on the left to fit the window.
      advance: called after each batch with the number of pairs scored so far.

    Returns:
      The summed log-likelihood of each continuation, and whether greedy decoding would
      produce it.

    Raises:
      InputError: a continuation is longer than the window.
    """
    scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    groups = by_length(share(pairs, placed.window), lambda row: row.length, placed.rows)
    lengths = [power_of_two(group[0].length, SHORTEST) for group in groups]
    # One number of scored positions per length, to avoid additional shapes.
    places: dict[int, int] = {}
    for group, length in zip(groups, lengths, strict=True):
        most = max(sum(map(len, shared.row.choices)) for shared in group)
        places[length] = max(places.get(length, 0), power_of_two(most, SHORTEST))
    for group, length in zip(groups, lengths, strict=True):
        (batch,) = choices.batches(
            [shared.row for shared in group],
            placed.rows,
            placed.tokenizer.pad_id,
            length=length,
            targets=places[length],
        )
        sums, greedy = choices.scores_and_greedy(
            placed.graph, placed.params, placed.place(batch)
        )
        sums, greedy = np.asarray(sums), np.asarray(greedy)
        for row, shared in enumerate(group):
            for choice, number in enumerate(shared.pairs):
                scores[number] = float(sums[row, choice]), bool(greedy[row, choice])
        advance(sum(len(shared.pairs) for shared in group))
    return scores


def share(pairs: Sequence[Pair], window: int) -> list[Shared]:
    """Arranges pairs in rows.

    A continuation joins another row of its context if it is no longer than the context
    and the row still fits the window; otherwise sharing costs more than it saves.

    Args:
      pairs: as for `log_likelihoods`.
      window: the most tokens to predict from; the last token predicts nothing.

    Raises:
      InputError: a continuation is longer than the window.
    """
    rows: list[Shared] = []
    latest: dict[tuple[int, ...], Shared] = {}
    for number, (context, continuation) in enumerate(pairs):
        if len(continuation) > window:
            raise InputError(
                f"a continuation must have at most {window} tokens, the model's "
                f"window, got {len(continuation)}"
            )
        seen = tuple(context[-(window + 1 - len(continuation)) :])
        shared = latest.get(seen)
        if (
            shared is None
            or len(shared.pairs) == choices.CHOICES
            or len(continuation) > len(seen)
            or shared.length + len(continuation) > window + 1
        ):
            shared = latest[seen] = Shared(choices.Row(list(seen), [], 0), [])
            rows.append(shared)
        shared.row.choices.append(list(continuation))
        shared.pairs.append(number)
    return rows
