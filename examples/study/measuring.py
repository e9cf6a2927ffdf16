"""What is measured of a model, item by item, so that any two rows can be paired."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from examples.finetune import choices, evaluate, generate, token_losses
from examples.finetune.data import LENGTH_STEP, Example, round_up
from examples.finetune.sharding import row_shards
from examples.finetune.token_losses import Hidden, TokenSet
from examples.study.texts import Task, Texts
from examples.study.training import Params, Trainer

DIGITS = 6  # of what is kept: the results file stays small
KINDS = ("losses", "divergences")

Measured = dict[str, Any]


class Reference(NamedTuple):
    """What a start leaves for comparison.

    Attributes:
      head: the parameters that make logits of hidden states, on the devices.
      hidden: its final hidden states, by set.
    """

    head: Mapping[str, Any]
    hidden: dict[str, Hidden]


class Scales:
    """Everything that models are put on, in batches.

    Args:
      texts: what is measured on.
      trainer: where the model lies.
    """

    def __init__(self, texts: Texts, trainer: Trainer) -> None:
        self._trainer = trainer
        self._tokenizer = trainer.source.tokenizer
        shards = row_shards(trainer.mesh)
        rows = round_up(evaluate.TOKEN_ROWS, shards)
        self._tasks: dict[str, Task] = {**texts.tasks, **texts.stages}
        held_out = {name: task.held_out for name, task in self._tasks.items()}
        self.retained = tuple(texts.retained)
        self._items = {**held_out, **texts.retained}
        self._sets = {
            name: TokenSet.of(
                name,
                items,
                batch_size=rows,
                # Rounded up, so that few lengths are compiled.
                sequence_length=round_up(max(len(i.ids) for i in items), LENGTH_STEP),
                divergence="prompts" if name in self._tasks else "all",
            )
            for name, items in self._items.items()
        }
        asked = round_up(evaluate.CHOICE_ROWS, shards)
        self._questions = {
            name: (found, count, choices.batches(found, asked, self._tokenizer.pad_id))
            for name, (found, count) in texts.questions.items()
        }
        self._decoding_rows = round_up(evaluate.DECODING_ROWS, shards)

    def counts(self) -> dict[str, dict[str, list[int]]]:
        """The tokens that count in each item, by set and kind of measurement."""
        return {
            name: {
                kind: np.concatenate(
                    [batch[weights].sum(axis=1) for batch in tokens.batches]
                )[: len(self._items[name])]
                .astype(int)
                .tolist()
                for kind, weights in zip(
                    KINDS, ("loss_weights", "divergence_weights"), strict=True
                )
            }
            for name, tokens in self._sets.items()
        }

    def measure(
        self, params: Params, tasks: Iterable[str], reference: Reference
    ) -> Measured:
        """Measures a model.

        Args:
          params: its parameters, on the devices.
          tasks: the tasks that it is measured on, beside all that is to be retained.
          reference: what the start left for comparison.

        Returns:
          `sets`: for each task and text the losses and the divergences from the start,
          each summed over an item's tokens; `choices` and `exact`: a digit an item, 1
          where it is right, for each set of questions and each task that is decoded.
        """
        tasks = tuple(tasks)
        return {
            "sets": self.sets(params, (*tasks, *self.retained), reference),
            "choices": self.choices(params),
            "exact": self.exact(params, tasks),
        }

    def sets(
        self,
        params: Params,
        names: Iterable[str],
        reference: Reference,
        *,
        start: bool = False,
    ) -> Measured:
        """The `sets` of `measure` by name; a start's own leave its hidden states."""
        trainer, sets = self._trainer, {}
        for name in names:
            before = None if start else reference.hidden[name]
            *found, hidden = token_losses.measure_rows(
                *(trainer.graph, params, self._sets[name], trainer.place),
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

    def choices(self, params: Params) -> dict[str, str]:
        """The `choices` of `measure`."""
        return {name: self._choices(params, name) for name in self._questions}

    def exact(self, params: Params, tasks: Iterable[str]) -> dict[str, str]:
        """The `exact` of `measure`."""
        decoded = [name for name in tasks if self._tasks[name].decoded]
        return {name: self._exact(params, self._items[name]) for name in decoded}

    def _choices(self, params: Params, name: str) -> str:
        rows, count, batches = self._questions[name]
        given = self._trainer.graph, params, rows, batches, self._trainer.place
        return _marks(choices.right(*given, count))

    def _exact(self, params: Params, items: list[Example]) -> str:
        written = generate.answers(
            self._trainer.graph,
            params,
            [item.prompt_ids for item in items],
            self._trainer.place,
            batch_size=self._decoding_rows,
            max_new_tokens=self._trainer.budget.new_tokens,
            stop_ids=self._tokenizer.stop_ids,
        )
        answers = [self._tokenizer.decode(ids) for ids in written]
        return _marks(evaluate.matches(answers, [item.completion for item in items]))


def _marks(right: Iterable[bool]) -> str:
    """A 1 for each item that is right, a 0 for each other."""
    return "".join(str(int(one)) for one in right)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
