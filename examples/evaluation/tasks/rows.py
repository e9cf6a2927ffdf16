"""Items that our own code makes, for the harness: nothing is downloaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]  # comes with lm-eval

from examples.finetune.command.config import EVALUATION_ROWS, TRAINING_ROWS
from examples.finetune.data import word_problems
from examples.finetune.evaluation import evaluate


def problems(**_: Any) -> datasets.DatasetDict:
    """The word problems that a run of examples.finetune trains on and is measured on.

    The test is its held-out problems; what precedes an item as a solved example comes
    from those to train on.
    """
    made = {
        "train": word_problems.problems(TRAINING_ROWS, seed=0, split="train"),
        "test": word_problems.problems(EVALUATION_ROWS, seed=0, split="test"),
    }
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows) for split, rows in made.items()}
    )


def final_answer(item: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
    """Whether an answer comes to the same as the reference."""
    return {"exact_match": evaluate.exact_match(answers, [item["answer"]])}
