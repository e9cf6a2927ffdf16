"""The JSON task: records are what the sentences say, and the splits are disjoint."""

import json
import re

import pytest

from examples.finetune.data import records, tasks
from examples.finetune.data.records import rows

# How each kind of sentence is put, read from the sentence alone.
DAY = r"(?P<day>\w+day)"
NAME = r"(?P<name>[A-Z]\w+)"
ORDER = r"(?P<amount>[\w-]+) (?P<unit>\w+) of (?P<item>[a-z ]+)"
MEASURED = r"(?P<amount>\d+\.\d) (?P<unit>\w+) of (?P<item>[a-z ]+)"
LASTING = r"(?P<amount>[\w-]+) (?P<unit>minutes)"
WITH = r"(?P<item>[a-z ]+)"
FORMS = {
    "order": (
        rf"Please send {NAME} {ORDER} by {DAY}\.",
        rf"{NAME} would like {ORDER}, to be delivered on {DAY}\.",
        rf"Can you put {NAME} down for {ORDER}\? It is needed on {DAY}\.",
        rf"On {DAY} {NAME} will pick up {ORDER}\.",
        rf"{ORDER} for {NAME}, please, no later than {DAY}\.",
        rf"{NAME} called: we are to bring {ORDER} on {DAY}\.",
    ),
    "appointment": (
        rf"{NAME} sees the {WITH} on {DAY} for {LASTING}\.",
        rf"Book {LASTING} with the {WITH} for {NAME} on {DAY}\.",
        rf"The {WITH} has {LASTING} for {NAME} on {DAY}\.",
        rf"On {DAY} {NAME} has {LASTING} with the {WITH}\.",
        rf"{NAME} asked for {LASTING} with the {WITH}, and {DAY} is free\.",
        rf"Remind {NAME} of the {WITH} on {DAY}; it will take {LASTING}\.",
    ),
    "measurement": (
        rf"{NAME} measured {MEASURED} on {DAY}\.",
        rf"On {DAY} {NAME} noted {MEASURED}\.",
        rf"{DAY}: {MEASURED}, read off by {NAME}\.",
        rf"According to {NAME} there were {MEASURED} on {DAY}\.",
        rf"The scale showed {NAME} {MEASURED} on {DAY}\.",
        rf"{NAME} wrote down {MEASURED} after the check on {DAY}\.",
    ),
}
ONES = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen", "twenty"),
)
WORDS = {word: value for value, word in enumerate(ONES, 1)}
WORDS |= {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70}
WORDS |= {"eighty": 80, "ninety": 90}


def number(text: str) -> float:
    if text[0].isdigit():
        return float(text)
    return sum(WORDS[word] for word in text.lower().split("-"))


def read(sentence: str) -> dict[str, object]:
    """What a sentence says, by this test's own reading."""
    found = [
        (kind, match.groupdict())
        for kind, forms in FORMS.items()
        for form in forms
        if (match := re.fullmatch(form, sentence))
    ]
    assert len(found) == 1, sentence
    kind, said = found[0]
    unit = said["unit"]
    return {
        "kind": kind,
        "name": said["name"],
        "item": said["item"],
        "amount": number(said["amount"]),
        "unit": "box" if unit == "boxes" else unit.removesuffix("s"),
        "day": said["day"],
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_record_says_what_the_sentence_says(split: records.Split) -> None:
    seen = set()
    for row in rows(3000, seed=5, split=split):
        record = json.loads(row["answer"])
        assert record == read(row["question"])
        assert [*record] == ["kind", "name", "item", "amount", "unit", "day"]
        assert row["answer"].isprintable()  # One line.
        assert row["group"] == record["name"]
        seen.add((record["kind"], record["unit"]))
    assert len(seen) == 5 + 1 + 4


def test_training_and_held_out_rows_share_no_name_and_no_item() -> None:
    def values(split: records.Split, key: str) -> set[str]:
        made = [row for seed in range(3) for row in rows(2000, seed=seed, split=split)]
        return {json.loads(row["answer"])[key] for row in made}

    for key in ("name", "item"):
        train, test = values("train", key), values("test", key)
        assert not train & test
        assert len(test) >= 16
        assert len(train) >= 3 * len(test) - 3


def test_a_seed_decides_the_rows_and_fewer_are_the_beginning_of_more() -> None:
    many = rows(400, seed=1, split="train")
    assert rows(30, seed=1, split="train") == many[:30]
    assert rows(400, seed=2, split="train") != many
    assert rows(400, seed=-1, split="train") != many
    assert len({row["question"] for row in many}) == 400


def test_kinds_take_turns() -> None:
    kinds = [
        json.loads(row["answer"])["kind"] for row in rows(90, seed=0, split="test")
    ]
    for kind in FORMS:
        assert abs(kinds.count(kind) - 30) <= 1


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"count must be in \[1, 100000\], got 0"):
        rows(0, seed=0, split="test")
    with pytest.raises(ValueError, match=r"split must be one of .* got 'held out'"):
        rows(1, seed=0, split="held out")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", [*tasks.TASKS])
def test_every_task_makes_rows_of_questions_and_answers(name: str) -> None:
    made = tasks.TASKS[name].rows(5, seed=0, split="test")
    assert len(made) == 5
    assert all({"question", "answer"} <= row.keys() for row in made)
