"""Chat answers by the start, on which drift is measured."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from examples.finetune.data.batches import LENGTH_STEP, round_up
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import generate
from examples.finetune.model.sharding import row_shards
from examples.finetune.system.files import read_json_lines, write_json_lines
from examples.finetune.system.hosts import fetch
from examples.study.texts import instructions
from examples.study.training import Params, Trainer

NAME = "chat.jsonl"
SEED = 7


def answers(
    trainer: Trainer, start: Params, file: pathlib.Path, count: int
) -> list[Example]:
    """Returns the answers to the study's instructions, the same ones for all rows.

    Args:
      trainer: the trainer with the model's structure.
      start: the start's parameters, on the host.
      file: the file of the answers, which is written if it does not exist; each row has
        an instruction and the tokens of prompt and answer.
      count: the number of instructions.
    """
    kept = read_json_lines(file)
    if not kept:
        kept = _written(trainer, start, count)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(file, kept)
    return [_example(row["prompt"], row["answer"]) for row in kept]


def _example(prompt: list[int], answer: list[int]) -> Example:
    loss = (False,) * len(prompt) + (True,) * len(answer)
    return Example(tuple(prompt), (*prompt, *answer), loss, "")


def _written(trainer: Trainer, start: Params, count: int) -> list[dict[str, Any]]:
    asked = instructions(count)
    prompts = [in_template(trainer, text) for text in asked]
    made = written(trainer, start, prompts, trainer.budget.chat_tokens, SEED)
    return [
        {"instruction": text, "prompt": prompt, "answer": answer}
        for text, prompt, answer in zip(asked, prompts, made, strict=True)
    ]


def in_template(trainer: Trainer, text: str) -> list[int]:
    """Returns the tokens that request an answer to a message."""
    tokenizer = trainer.source.tokenizer
    messages = [{"role": "user", "content": text}]
    return tokenizer.encode(tokenizer.chat(messages, add_generation_prompt=True))


def written(
    trainer: Trainer,
    start: Params,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    seed: int,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Samples continuations of prompts from the model's predictions.

    Args:
      trainer: the trainer with the model's structure.
      start: the start's parameters, on the host.
      prompts: nonempty sequences of token ids.
      new_tokens: length of the longest continuation.
      seed: seed of the samples.
      temperature: the logits are divided by it.

    Returns:
      The continuation of each prompt, up to and including the token that ended it.
    """
    length = round_up(max(map(len, prompts)), LENGTH_STEP)
    stops = tuple(sorted(trainer.source.tokenizer.stop_ids))
    rows = round_up(len(prompts), row_shards(trainer.mesh))
    batch = generate.padded(prompts, rows, length, stops[0])
    placed = trainer.place(batch)
    made = generate.decode(
        trainer.graph,
        trainer.begin(start),
        placed["prompts"],
        placed["lengths"],
        max_new_tokens=new_tokens,
        stop_ids=stops,
        key=jax.random.key(seed),
        temperature=temperature,
    )
    kept = fetch(made)[: len(prompts)]
    return [generate.until(ids, stops, keep_stop=True) for ids in kept]
