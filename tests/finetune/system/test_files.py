"""Files that appear whole, and damaged ones."""

import json
import pathlib

import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.system import files


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.md"
    files.write_text(path, "good")

    def fail() -> None:
        with files.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5, 2]})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5, 2],
    }


def test_a_damaged_json_file_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.json"
    assert files.read_json(path) is None
    path.write_text("{")
    with pytest.raises(InputError, match=r"x\.json is damaged"):
        files.read_json(path)


def test_a_line_that_was_cut_short_is_left_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.jsonl"
    files.append_json(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": ')
    assert files.read_json_lines(path) == [{"a": 1}]
