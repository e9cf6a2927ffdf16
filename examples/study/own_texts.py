"""Texts by the start, which methods replay, or from which they estimate what to spare.

Only what occurs in these texts is spared, so they begin in three ways: with the token
that begins a text, as answers to messages in the chat template, and with short openings
of many kinds. No opening is among the instructions on which drift is measured.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from examples.finetune.evaluation import token_losses
from examples.finetune.training import own_text
from examples.finetune.training.own_text import Text
from examples.study import chat
from examples.study.methods import OwnTexts
from examples.study.training import Params, Trainer

OPENINGS = pathlib.Path(__file__).with_name("openings.txt")
MESSAGE = "> "  # Lines with this prefix are messages, others begin texts.
NEW_TOKENS = 96
SEED = 1
ROWS = 96  # Most texts that are written at the same time.


def write(trainer: Trainer, start: Params, wanted: OwnTexts) -> list[Text]:
    """Samples texts from the start.

    Args:
      trainer: the trainer with the model's structure.
      start: the start's parameters, on the host.
      wanted: the number and kinds of texts, and the temperature. Of all kinds, a third
        begin with nothing.

    Returns:
      The texts.
    """
    possible = (prompt for kind, prompt in _prompts(trainer) if kind in wanted.kinds)
    prompts = list(itertools.islice(possible, wanted.count))
    made: list[list[int]] = []
    for first in range(0, len(prompts), ROWS):
        given = trainer, start, prompts[first : first + ROWS], NEW_TOKENS
        made += chat.written(*given, SEED + first // ROWS, wanted.temperature)
    return [
        Text([*prompt, *text], len(prompt))
        for prompt, text in zip(prompts, made, strict=True)
    ]


def _prompts(trainer: Trainer) -> Iterator[tuple[str, list[int]]]:
    """Yields kinds and prompts without end."""
    tokenizer = trainer.source.tokenizer
    first = tokenizer.first_id
    lines = OPENINGS.read_text("utf-8").splitlines()
    for number in itertools.count():
        line = lines[number * 2 // 3 % len(lines)]
        if number % 3 == 0:
            yield "nothing", [first]
        elif line.startswith(MESSAGE):
            message = line.removeprefix(MESSAGE)
            yield "message", chat.in_template(trainer, message)
        else:
            yield "opening", [first, *tokenizer.encode(line.replace("\\n", "\n"))]


def predicted(
    trainer: Trainer, start: Params, written: Sequence[Text], length: int
) -> tuple[list[Text], np.ndarray]:
    """Computes the start's predictions on texts, for replay.

    Args:
      trainer: the trainer with the model's structure.
      start: the start's parameters, on the host.
      written: the result of `write`.
      length: tokens of a row. Longer texts are cut.

    Returns:
      The texts, and the start's final hidden states on them, float32 [N, length, D].
    """
    texts = [
        Text(text.ids[:length], text.given)
        for text in written
        if text.given + 1 < length
    ]
    hidden = token_losses.hidden_states(
        trainer.graph,
        trainer.begin(start),
        own_text.batch(texts, length),
        trainer.place,
        trainer.budget.batch_size,
    )
    return texts, hidden
