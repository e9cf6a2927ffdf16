"""Texts and tasks, as tokens: what is learned and what should not be forgotten."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from examples.finetune.command.errors import InputError
from examples.finetune.command.options import SEQUENCE_LENGTH, TRAINING_ROWS
from examples.finetune.data import records, retention
from examples.finetune.data.batches import round_up
from examples.finetune.data.encoding import Example, encode_rows
from examples.finetune.data.rows import read_rows
from examples.finetune.evaluation import choices
from examples.finetune.evaluation.evaluate import spread
from examples.finetune.model.tokenizer import Tokenizer
from examples.study import docstrings
from examples.study.budget import Budget

# The most tokens per row, before the budget's factor.
LENGTHS = {"gsm8k": 192, "json": SEQUENCE_LENGTH, "docstrings": 128}
LENGTHS |= {"prose": 128, "code": 128, "chat": 128}
HELD_OUT_RECORDS = 512  # rows of the task json; budgets measure at most 320
HELD_OUT = 3  # One in this many groups is held out, without files.
SHARED_WORDS = 8  # The length of word sequences for counting overlap.
PLENTY = 1_000_000
UNKNOWN = "<unk>"  # what the encyclopaedia has for rare words
CHAT = "chat"
INSTRUCTIONS = pathlib.Path(__file__).with_name("instructions.txt")

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task to learn.

    Attributes:
      training: examples to learn from.
      held_out: examples that measure it.
      length: tokens of a training row.
      about: the numbers of rows for training, held out, and dropped as duplicates, and
        the share of held-out word sequences that occur in training.
    """

    training: list[Example]
    held_out: list[Example]
    length: int
    about: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Texts:
    """All texts and tasks of the study.

    Attributes:
      tasks: the tasks by name, each of which is read when first used.
      retained: texts for measuring drift, except the chat answers, which the start
        writes.
      questions: questions of general knowledge.
      neutral: texts for healing the start, on none of which it is measured.
    """

    tasks: Mapping[str, Callable[[], Task]]
    retained: dict[str, list[Example]]
    questions: list[choices.Row]
    neutral: Task

    def digest(self, task: Task) -> str:
        """Returns a digest of all data that determine a task's rows."""
        found = [*task.training, *task.held_out, *self.neutral.training]
        found += [example for name in self.retained for example in self.retained[name]]
        digest = hashlib.sha256()
        for ids in (*(example.ids for example in found), *map(_ids, self.questions)):
            digest.update(np.array([len(ids), *ids], np.int32).tobytes())
        return digest.hexdigest()[:16]


def _ids(row: choices.Row) -> list[int]:
    return [*row.prompt, *(token for ids in row.choices for token in ids)]


def read(data: pathlib.Path | None, tokenizer: Tokenizer, budget: Budget) -> Texts:
    """Reads and tokenizes everything.

    Args:
      data: the directory of files; None to use only data without files.
      tokenizer: the model's tokenizer.
      budget: the number and length of items.

    Raises:
      InputError: a file is missing or cannot be used.
    """
    reader = _Reader(data, tokenizer, budget)
    neutral = [*reader.manual(1), *reader.library(1)]
    tasks: dict[str, Callable[[], Task]] = {
        "json": reader.records,
        "docstrings": reader.docstrings,
    }
    if data is None:
        prose, code = reader.manual(0), reader.library(0)
    else:
        tasks = {"gsm8k": reader.gsm8k, **tasks}
        wiki = reader.encyclopaedia()
        half = len(wiki) // 2
        neutral += spread(wiki[:half], len(neutral) // 2)
        prose, code = wiki[half:], reader.programs()
    retained = {
        name: spread(found, budget.text_items)
        for name, found in (("prose", prose), ("code", code))
    }
    asked = choices.encode(retention.knowledge_questions(), tokenizer)
    healing = Task(neutral, [], reader.longest("prose"), {})
    questions = spread(asked, budget.questions)
    return Texts(tasks, retained, questions, healing)


def instructions(count: int) -> list[str]:
    """Returns the prompts of the chat answers, which no method sees."""
    return spread(INSTRUCTIONS.read_text("utf-8").splitlines(), count)


@dataclasses.dataclass(frozen=True)
class _Reader:
    data: pathlib.Path | None
    tokenizer: Tokenizer
    budget: Budget

    def file(self, name: str) -> pathlib.Path:
        path = (self.data or pathlib.Path()) / name
        if not path.is_file():
            raise InputError(f"--data must contain a file {name}; there is no {path}")
        return path

    def longest(self, name: str) -> int:
        return LENGTHS[name] * self.budget.length_factor

    def gsm8k(self) -> Task:
        return self.task(
            "gsm8k",
            read_rows(self.file("gsm8k_train.jsonl")),
            read_rows(self.file("gsm8k_test.jsonl")),
        )

    def records(self) -> Task:
        return self.task(
            "json",
            records.rows(TRAINING_ROWS, seed=0, split="train"),
            records.rows(HELD_OUT_RECORDS, seed=0, split="test"),
        )

    def docstrings(self) -> Task:
        training, held_out = [], []
        for function in docstrings.functions():
            other = zlib.crc32(function.module.encode()) % HELD_OUT == 0
            (held_out if other else training).append(function.row())
        return self.task("docstrings", training, held_out)

    def task(self, name: str, training: Rows, held_out: Rows) -> Task:
        """Drops duplicates and rows that are too long, and reports the numbers."""
        kept, rest = _distinct(training, ()), _distinct(held_out, training)
        dropped = len(training) + len(held_out) - len(kept) - len(rest)
        learned, measured = (self.encode(name, rows) for rows in (kept, rest))
        if not learned or not measured:
            raise InputError(
                f"the task {name} has no rows of at most {self.longest(name)} tokens"
            )
        about = {
            "training": len(learned),
            "held_out": len(measured),
            "duplicates": dropped,
            "overlap": round(_overlap(rest, kept), 4),
        }
        longest = max(len(example.ids) for example in (*learned, *measured))
        length = min(round_up(longest, 16), self.longest(name))
        return Task(learned, spread(measured, self.budget.task_items), length, about)

    def encode(self, name: str, rows: Rows) -> list[Example]:
        """Returns the examples that are short enough."""
        examples = encode_rows(rows, self.tokenizer, PLENTY, name)
        return [item for item in examples if len(item.ids) <= self.longest(name)]

    def pieces(self, name: str, texts: Iterable[str]) -> list[Example]:
        rows = [{"text": text} for text in texts]
        return encode_rows(rows, self.tokenizer, self.longest(name), name)

    def manual(self, part: int) -> list[Example]:
        return self.pieces("prose", retention.prose_texts()[part::2])

    def library(self, part: int) -> list[Example]:
        return self.pieces("prose", retention.code_texts()[part::2])

    def encyclopaedia(self) -> list[Example]:
        text = self.file("wikitext2_test.txt").read_text("utf-8")
        if len(self.tokenizer.encode(UNKNOWN)) == 1:
            # To some models, what stands for a rare word is a token of their own, which
            # they never predict.
            text = text.replace(UNKNOWN, UNKNOWN.strip("<>"))
        whole = self.longest("prose")
        return [row for row in self.pieces("prose", [text]) if len(row.ids) == whole]

    def programs(self) -> list[Example]:
        """Returns the beginning of each program of HumanEval, as plain text."""
        with gzip.open(self.file("HumanEval.jsonl.gz"), "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts = [row["prompt"] + row["canonical_solution"] for row in rows]
        return [self.pieces("code", [text])[0] for text in texts]


def _words(row: Mapping[str, Any]) -> list[str]:
    return re.findall(r"\w+", " ".join(str(row[name]) for name in sorted(row)).lower())


def _distinct(rows: Rows, others: Rows) -> list[Mapping[str, Any]]:
    """Drops rows with the words of an earlier row or of one of the others."""
    seen = {" ".join(_words(row)) for row in others}
    kept = []
    for row in rows:
        text = " ".join(_words(row))
        if text not in seen:
            seen.add(text)
            kept.append(row)
    return kept


def _overlap(rows: Rows, others: Rows) -> float:
    """Returns the share of the rows' word sequences that occur in the others."""

    def sequences(row: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
        words = _words(row)
        starts = range(len(words) - SHARED_WORDS + 1)
        return (tuple(words[start : start + SHARED_WORDS]) for start in starts)

    known = {words for row in others for words in sequences(row)}
    found = [words in known for row in rows for words in sequences(row)]
    return float(np.mean(found)) if found else 0.0
