"""The texts for learning, measuring and healing are different."""

import ast
import dataclasses
import pathlib

import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.data.retention import CODE_MODULES
from examples.finetune.model.pretrained import Source, open_model
from examples.finetune.system.files import write_json_lines
from examples.study import docstrings, texts
from examples.study.budget import BUDGETS
from tests.finetune import small
from tests.study.made_data import write_data

BUDGET = BUDGETS["smallest"]


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny model, opened."""
    return open_model(str(small.write_model(tmp_path_factory.mktemp("tiny"))))


@pytest.mark.nightly
def test_no_row_is_both_learned_and_measured(
    tmp_path: pathlib.Path, tiny_source: Source
):
    write_data(tmp_path)
    found = texts.read(tmp_path, tiny_source.tokenizer, BUDGET)
    assert list(found.tasks) == ["gsm8k", "json", "docstrings"]
    for name, read in found.tasks.items():
        task = read()
        learned = {example.ids for example in task.training}
        measured = {example.ids for example in task.held_out}
        assert learned and measured and not learned & measured, name
        assert max(map(len, learned)) <= task.length
        assert len(measured) == BUDGET.task_items
    neutral = {example.ids for example in found.neutral.training}
    for name, items in found.retained.items():
        assert not neutral & {item.ids for item in items}, name
    # Half of the encyclopaedia is for healing, the other half for measuring.
    decode = tiny_source.tokenizer.decode
    assert any("w1 " in decode(ids) for ids in neutral)


def test_functions_are_cut_where_their_docstring_ends():
    found = docstrings.functions()
    assert len(found) > 1000
    used = {name.partition(".")[0] for name in CODE_MODULES}
    assert not used & {function.module for function in found}
    for function in found[:300]:
        tree = ast.parse(f"{function.head}\n{function.body}")
        (defined,) = tree.body
        assert isinstance(defined, ast.FunctionDef) and ast.get_docstring(defined)
        assert len(function.body) >= docstrings.SHORTEST


def test_docstrings_are_held_out_by_module(tiny_source: Source):
    everything = dataclasses.replace(BUDGET, task_items=1000)
    found = texts.read(None, tiny_source.tokenizer, everything)
    assert list(found.tasks) == ["json", "docstrings"]
    task = found.tasks["docstrings"]()
    # Bodies that occur in several modules do not identify their module.
    modules: dict[str, set[str]] = {}
    for function in docstrings.functions():
        modules.setdefault(function.body, set()).add(function.module)
    learned, measured = (
        {
            module
            for example in part
            if len(modules[example.completion]) == 1
            for module in modules[example.completion]
        }
        for part in (task.training, task.held_out)
    )
    assert learned and measured and not learned & measured


def test_duplicates_are_dropped_and_overlap_is_counted(
    tmp_path: pathlib.Path, tiny_source: Source
):
    write_data(tmp_path)
    sentence = "one two three four five six seven eight nine"
    learned = [{"question": sentence, "answer": str(n)} for n in (1, 1, 2)]
    held_out = [
        {"question": sentence, "answer": "1"},
        {"question": f"{sentence} ten eleven", "answer": "3"},
        {"question": "nothing of it is known to the others here", "answer": "3"},
    ]
    write_json_lines(tmp_path / "gsm8k_train.jsonl", learned)
    write_json_lines(tmp_path / "gsm8k_test.jsonl", held_out)
    task = texts.read(tmp_path, tiny_source.tokenizer, BUDGET).tasks["gsm8k"]()
    assert len(task.training) == 2 and len(task.held_out) == 2
    # Words are in the order answer, question. Of the five sequences of eight words in
    # the first held-out row, two are known; of the three in the second, none.
    assert task.about["duplicates"] == 2
    assert task.about["overlap"] == 2 / 8


@pytest.mark.nightly
def test_another_row_gives_another_digest(tmp_path: pathlib.Path, tiny_source: Source):
    def digests() -> list[str]:
        found = texts.read(tmp_path, tiny_source.tokenizer, BUDGET)
        return [found.digest(read()) for read in found.tasks.values()]

    write_data(tmp_path)
    before = digests()
    assert digests() == before
    rows = [{"question": f"other {n}", "answer": f"{n}"} for n in range(10)]
    write_json_lines(tmp_path / "gsm8k_train.jsonl", rows)
    after = digests()
    # The data of another task do not affect the rows of this one.
    assert after[0] != before[0] and after[1] == before[1]


def test_a_token_for_rare_words_is_a_word_to_models_that_have_one(
    tmp_path: pathlib.Path, tiny_source: Source, monkeypatch: pytest.MonkeyPatch
):
    write_data(tmp_path)
    path = tmp_path / "wikitext2_test.txt"
    path.write_text(path.read_text().replace(" ", " <end> ", 9))
    tokenizer = tiny_source.tokenizer
    special = "<|end|>"
    assert len(tokenizer.encode(special)) == 1 < len(tokenizer.encode("<end>"))

    def prose() -> str:
        found = texts.read(tmp_path, tokenizer, BUDGET).neutral.training
        return "".join(tokenizer.decode(example.ids) for example in found)

    monkeypatch.setattr(texts, "UNKNOWN", "<end>")
    assert "<end>" in prose()
    path.write_text(path.read_text().replace("<end>", special))
    monkeypatch.setattr(texts, "UNKNOWN", special)
    assert "|end|" in prose()


def test_a_missing_file_is_named(tmp_path: pathlib.Path, tiny_source: Source):
    write_data(tmp_path)
    (tmp_path / "wikitext2_test.txt").unlink()
    with pytest.raises(
        InputError, match=r"--data must contain a file wikitext2_test\.txt"
    ):
        texts.read(tmp_path, tiny_source.tokenizer, BUDGET)


def test_instructions_are_different():
    found = texts.instructions(48)
    assert len(set(found)) == len(found) == 48
