"""Measurements of a model by item, so that any two rows can be paired."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from examples.finetune.data.batches import LENGTH_STEP, round_up
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import choices, evaluate, token_losses
from examples.finetune.evaluation.token_losses import Hidden, TokenSet
from examples.finetune.model.sharding import row_shards
from examples.finetune.system.hosts import fetch
from examples.study.texts import CHAT
from examples.study.training import Params, Trainer

DIGITS = 6  # of stored numbers, to keep the results file small
KINDS = ("losses", "divergences")
WEIGHTS = ("loss_weights", "divergence_weights")

Measured = dict[str, Any]


class Reference(NamedTuple):
    """The start's data for comparison with it.

    Attributes:
      head: the parameters that compute logits from hidden states, on the devices.
      hidden: the start's final hidden states, by set.
    """

    head: Mapping[str, Any]
    hidden: dict[str, Hidden]


class Scales:
    """All texts and questions on which models are measured, in batches.

    Args:
      tasks: held-out examples by task; KL is computed on their prompts.
      retained: texts by name that the model should not forget; KL is computed on every
        token, for chat answers on the answers only.
      questions: questions of general knowledge.
      trainer: the trainer with the model's structure.
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Example]],
        retained: Mapping[str, Sequence[Example]],
        questions: list[choices.Row],
        trainer: Trainer,
    ) -> None:
        self._trainer = trainer
        self.retained = tuple(retained)
        shards = row_shards(trainer.mesh)
        rows = round_up(token_losses.ROWS, shards)
        self._items = {**tasks, **retained}
        self._sets = {
            name: _token_set(name, items, rows, "prompts" if name in tasks else "all")
            for name, items in self._items.items()
        }
        asked = round_up(evaluate.CHOICE_ROWS, shards)
        pad = trainer.source.tokenizer.pad_id
        batches = choices.batches(questions, asked, pad) if questions else []
        self._questions = questions, batches

    def counts(self) -> dict[str, dict[str, list[int]]]:
        """Returns the number of tokens of each item, by set and kind of measurement."""
        return {
            name: {
                kind: np.concatenate(
                    [batch[weights].sum(axis=1) for batch in tokens.batches]
                )[: len(self._items[name])]
                .astype(int)
                .tolist()
                for kind, weights in zip(KINDS, WEIGHTS, strict=True)
            }
            for name, tokens in self._sets.items()
        }

    def measure(
        self, params: Params, task: str, reference: Reference, *, start: bool = False
    ) -> Measured:
        """Measures a model.

        Args:
          params: the model's parameters, on the devices.
          task: the task to measure it on, in addition to the retained texts.
          reference: the start's data; the start itself sets it.
          start: whether this is the start, which has no divergence from itself.

        Returns:
          `sets`, the result of the method of this name, and `margins`, for each
          question the log-odds of the right answer among the choices.
        """
        names = (task, *self.retained)
        sets = self.sets(params, names, reference, start=start)
        return {"sets": sets, "margins": self._margins(params)}

    def sets(
        self,
        params: Params,
        names: Iterable[str],
        reference: Reference,
        *,
        start: bool = False,
    ) -> Measured:
        """Measures a model on some sets.

        Returns:
          For each name the losses and the divergences from the start, each summed over
          the tokens of an item.
        """
        sets = {}
        for name in names:
            before = None if start else reference.hidden[name]
            *found, hidden = token_losses.measure_rows(
                *(self._trainer.graph, params, self._sets[name], self._trainer.place),
                *(reference.head, before),
            )
            size = len(self._items[name])
            sets[name] = {
                kind: [_short(value) for value in values[:size]]
                for kind, values in zip(KINDS, found, strict=True)
            }
            if start:
                sets[name].pop("divergences")
                reference.hidden[name] = hidden
        return sets

    def _margins(self, params: Params) -> list[float]:
        rows, batches = self._questions
        given = self._trainer.graph, params
        scores = [
            fetch(choices.scores(*given, self._trainer.place(batch)))
            for batch in batches
        ]
        margins = log_odds(
            np.concatenate(scores)[: len(rows)], [r.answer for r in rows]
        )
        return [_short(value) for value in margins]


def log_odds(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """Returns the log-odds of the right choices.

    Args:
      scores: log-likelihoods [questions, choices].
      answers: the right choice of each question.
    """
    right = np.arange(scores.shape[1]) == np.array(answers)[:, None]
    others = np.where(right, -np.inf, scores.astype(np.float64))
    return scores[right] - scipy.special.logsumexp(others, axis=1)


def _token_set(
    name: str, items: Sequence[Example], rows: int, divergence: Any
) -> TokenSet:
    # Rounded up, to compile for few lengths.
    longest = round_up(max(len(item.ids) for item in items), LENGTH_STEP)
    made = TokenSet.of(
        name, items, batch_size=rows, sequence_length=longest, divergence=divergence
    )
    if name != CHAT:
        return made
    answered, compared = WEIGHTS
    batches = tuple(batch | {compared: batch[answered]} for batch in made.batches)
    return dataclasses.replace(made, batches=batches)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
