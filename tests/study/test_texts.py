"""What is learned, measured and healed on are different texts."""

import pathlib

import pytest

from examples.finetune.errors import InputError
from examples.finetune.files import write_json_lines
from examples.finetune.pretrained import Source, open_model
from examples.study import texts
from examples.study.budget import BUDGETS
from tests.finetune import small
from tests.study.made_data import write_data


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny model, opened."""
    return open_model(str(small.write_model(tmp_path_factory.mktemp("tiny"))))


def test_no_row_is_both_learned_and_measured(
    tmp_path: pathlib.Path, tiny_source: Source
):
    write_data(tmp_path)
    found = texts.read(tmp_path, tiny_source.tokenizer, BUDGETS["smallest"])
    assert list(found.tasks) == ["gsm8k", "metamath", "medicine", "problems"]
    tasks = {**found.tasks, **found.stages}
    for name, task in tasks.items():
        learned = {example.ids for example in task.training}
        measured = {example.ids for example in task.held_out}
        assert learned and measured and not learned & measured, name
        assert max(map(len, learned)) <= task.length
    neutral = {example.ids for example in found.neutral.training}
    for name, items in found.retained.items():
        assert not neutral & {item.ids for item in items}, name
    programs = {example.ids for example in found.stages["programs"].training}
    assert not programs & {item.ids for item in found.retained["code"]}
    # Half of the encyclopaedia is for healing, the other half for measuring.
    decode = tiny_source.tokenizer.decode
    assert any("w1 " in decode(ids) for ids in neutral)
    assert {count for _, count in found.questions.values()} == {2, 4}


def test_without_files_only_what_needs_none(tiny_source: Source):
    budget = BUDGETS["smallest"]
    found = texts.read(None, tiny_source.tokenizer, budget)
    assert list(found.tasks) == ["problems"] and not found.stages
    assert list(found.questions) == ["knowledge"]
    assert len(found.tasks["problems"].held_out) == budget.task_items
    neutral = {example.ids for example in found.neutral.training}
    assert all(
        item.ids not in neutral for items in found.retained.values() for item in items
    )
    again = texts.read(None, tiny_source.tokenizer, budget)
    assert again.digest == found.digest


def test_another_row_gives_another_digest(tmp_path: pathlib.Path, tiny_source: Source):
    write_data(tmp_path)
    budget = BUDGETS["smallest"]
    before = texts.read(tmp_path, tiny_source.tokenizer, budget).digest
    rows = [{"question": f"other {n}", "answer": f"{n}"} for n in range(10)]
    write_json_lines(tmp_path / "gsm8k_train.jsonl", rows)
    assert texts.read(tmp_path, tiny_source.tokenizer, budget).digest != before


def test_a_missing_file_is_named(tmp_path: pathlib.Path, tiny_source: Source):
    write_data(tmp_path)
    (tmp_path / "piqa_valid.jsonl").unlink()
    with pytest.raises(InputError, match=r"--data must have a file piqa_valid\.jsonl"):
        texts.read(tmp_path, tiny_source.tokenizer, BUDGETS["smallest"])
