"""What is learned, and what must not be forgotten: rows as tokens, split for good."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.finetune import choices, retention, word_problems
from examples.finetune.data import Example, encode_rows, read_rows, round_up
from examples.finetune.errors import InputError
from examples.finetune.evaluate import spread
from examples.finetune.files import read_json_lines
from examples.finetune.tokenizer import Tokenizer
from examples.study.budget import Budget
from examples.study.plan import TEXTS

# The most tokens of a row, before the budget's factor: most rows of GSM8K and of
# MetaMathQA are longer, but two cores are slow.
LENGTHS = {
    "gsm8k": 128,
    "metamath": 192,
    "medicine": 160,
    "problems": 128,
    "code": 160,
    "prose": 128,
}
HELD_OUT = 5  # Where a file is not split, every fifth row is held out.
LONGEST_QUESTION = 64
GENERATED = 512
PLENTY = 1_000_000


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
      training: examples to learn from.
      held_out: examples that measure it.
      length: tokens of a training row.
      decoded: whether answers can be compared word for word.
    """

    training: list[Example]
    held_out: list[Example]
    length: int
    decoded: bool = False


@dataclasses.dataclass(frozen=True)
class Texts:
    """All that the study reads.

    Attributes:
      tasks: by name, the main one first.
      stages: what only a continual run learns.
      retained: texts that measure forgetting by loss.
      questions: questions that measure it by accuracy: tokens and the number of
        choices.
      neutral: what the start is healed on, none of it measured on.
      digest: of all of it.
    """

    tasks: dict[str, Task]
    stages: dict[str, Task]
    retained: dict[str, list[Example]]
    questions: dict[str, tuple[list[choices.Row], int]]
    neutral: Task
    digest: str


def read(data: pathlib.Path | None, tokenizer: Tokenizer, budget: Budget) -> Texts:
    """Reads and tokenizes everything.

    Args:
      data: the directory of files; None for what needs none.
      tokenizer: the model's.
      budget: how much is measured and how long rows may be.

    Raises:
      InputError: a file is missing or cannot be used.
    """
    reader = _Reader(data, tokenizer, budget)
    neutral = [*reader.manual(1), *reader.library(1)]
    asked = retention.knowledge_questions()
    questions = {"knowledge": (reader.questions(asked), 4)}
    tasks = {"problems": reader.problems()}
    if data is None:
        stages: dict[str, Task] = {}
        prose, code = reader.manual(0), reader.library(0)
    else:
        tasks = {
            "gsm8k": reader.split("gsm8k", "gsm8k_train.jsonl", "gsm8k_test.jsonl"),
            "metamath": reader.split("metamath", "metamathqa_val.jsonl"),
            "medicine": reader.split("medicine", "pmc_medical_val.jsonl"),
            **tasks,
        }
        wiki = reader.encyclopaedia()
        half = len(wiki) // 2
        neutral += spread(wiki[:half], len(neutral) // 2)
        solutions = reader.solutions()
        stages = {"programs": reader.task("code", solutions[1::2], solutions[::2])}
        prose, code = wiki[half:], solutions[::2]
        questions["piqa"] = reader.questions(reader.everyday()), 2
    retained = {
        name: spread(found, budget.text_items)
        for name, found in zip(TEXTS, (prose, code), strict=True)
    }
    healing = reader.task("prose", neutral, neutral)
    return Texts(
        tasks,
        stages,
        retained,
        questions,
        healing,
        _digest([*tasks.values(), *stages.values(), healing], retained, questions),
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    data: pathlib.Path | None
    tokenizer: Tokenizer
    budget: Budget

    def file(self, name: str) -> pathlib.Path:
        path = (self.data or pathlib.Path()) / name
        if not path.is_file():
            raise InputError(f"--data must have a file {name}, and {path} is none")
        return path

    def longest(self, name: str) -> int:
        return LENGTHS[name] * self.budget.length_factor

    def encode(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
        """The examples that are short enough."""
        examples = encode_rows(rows, self.tokenizer, PLENTY, name)
        return [item for item in examples if len(item.ids) <= self.longest(name)]

    def pieces(self, name: str, texts: Sequence[str]) -> list[Example]:
        rows = [{"text": text} for text in texts]
        return encode_rows(rows, self.tokenizer, self.longest(name), name)

    def task(
        self,
        name: str,
        training: Sequence[Example],
        held_out: Sequence[Example],
        decoded: bool = False,
    ) -> Task:
        if not training or not held_out:
            raise InputError(
                f"the task {name} has no rows of at most {self.longest(name)} tokens"
            )
        longest = max(len(example.ids) for example in training)
        kept = spread(held_out, self.budget.task_items)
        length = min(round_up(longest, 16), self.longest(name))
        return Task(list(training), kept, length, decoded)

    def split(self, name: str, train: str, test: str | None = None) -> Task:
        rows = self.encode(name, read_rows(self.file(train)))
        if test is not None:
            return self.task(name, rows, self.encode(name, read_rows(self.file(test))))
        training = [row for place, row in enumerate(rows) if place % HELD_OUT]
        return self.task(name, training, rows[::HELD_OUT])

    def problems(self) -> Task:
        made = (
            word_problems.problems(GENERATED, seed=0, split="train"),
            word_problems.problems(self.budget.task_items, seed=0, split="test"),
        )
        training, held_out = (self.encode("problems", rows) for rows in made)
        return self.task("problems", training, held_out, decoded=True)

    def manual(self, part: int) -> list[Example]:
        return self.pieces("prose", retention.prose_texts()[part::2])

    def library(self, part: int) -> list[Example]:
        return self.pieces("prose", retention.code_texts()[part::2])

    def encyclopaedia(self) -> list[Example]:
        text = self.file("wikitext2_test.txt").read_text("utf-8")
        whole = self.longest("prose")
        return [row for row in self.pieces("prose", [text]) if len(row.ids) == whole]

    def solutions(self) -> list[Example]:
        with gzip.open(self.file("HumanEval.jsonl.gz"), "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        pairs = [(row["prompt"], row["canonical_solution"]) for row in rows]
        return self.encode(
            "code", [{"prompt": asked, "completion": code} for asked, code in pairs]
        )

    def everyday(self) -> list[retention.Question]:
        """PIQA's questions, with two empty choices behind its own."""
        rows = read_json_lines(self.file("piqa_valid.jsonl"))
        return [
            retention.Question(
                row["goal"], (row["sol1"], row["sol2"], "", ""), row["label"], "piqa"
            )
            for row in rows
        ]

    def questions(self, asked: Sequence[retention.Question]) -> list[choices.Row]:
        rows = choices.encode(asked, self.tokenizer.encode)
        longest = LONGEST_QUESTION * self.budget.length_factor
        short = [row for row in rows if row.length <= longest]
        return spread(short, self.budget.choice_items)


def _digest(
    tasks: Sequence[Task],
    retained: Mapping[str, Sequence[Example]],
    questions: Mapping[str, tuple[list[choices.Row], int]],
) -> str:
    digest = hashlib.sha256()
    examples = [e for task in tasks for e in (*task.training, *task.held_out)]
    for example in (*examples, *(e for found in retained.values() for e in found)):
        digest.update(np.array([len(example.ids), *example.ids], np.int32).tobytes())
    for rows, _ in questions.values():
        for row in rows:
            parts = [*row.prompt, *(token for ids in row.choices for token in ids)]
            digest.update(np.array(parts, np.int32).tobytes())
    return digest.hexdigest()[:16]
