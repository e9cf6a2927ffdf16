"""Texts that the start writes itself, on which methods estimate what to spare.

They begin in three ways, since what is not in them is not spared: from the token that
begins a text, as answers to messages in the chat template, and from short openings of
many kinds. None of the openings is among the instructions that drift is measured on.
"""

import pathlib

from examples.finetune.data.batches import Example
from examples.study import chat
from examples.study.training import Params, Trainer

OPENINGS = pathlib.Path(__file__).with_name("openings.txt")
MESSAGE = "> "  # Lines that begin so are messages, the others beginnings of texts.
NEW_TOKENS = 96
SEED = 1


def write(trainer: Trainer, start: Params, count: int) -> list[Example]:
    """Lets the start write.

    Args:
      trainer: has the model's structure.
      start: its parameters, on the host.
      count: the number of texts, a third of which begin from nothing.
    """
    tokenizer = trainer.source.tokenizer
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    lines = OPENINGS.read_text("utf-8").splitlines()
    prompts = []
    for number in range(count):
        line = lines[number * 2 // 3 % len(lines)]
        if number % 3 == 0:
            prompts.append([first])
        elif line.startswith(MESSAGE):
            prompts.append(chat.in_template(trainer, line.removeprefix(MESSAGE)))
        else:
            prompts.append([first, *tokenizer.encode(line.replace("\\n", "\n"))])
    made = chat.written(trainer, start, prompts, NEW_TOKENS, SEED)
    return [
        Example((), (*prompt, *text), (True,) * (len(prompt) + len(text)), "")
        for prompt, text in zip(prompts, made, strict=True)
    ]
