"""Wrong options of the benchmarks are named before anything is written."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from examples.benchmarks import on_device, optimizer_step


@pytest.mark.parametrize(
    "main, arguments, words",
    [
        (
            optimizer_step.main,
            ["--trees", "oak"],
            "--trees must be among small, .*, got 'oak'",
        ),
        (
            optimizer_step.main,
            ["--pytorch-tree", "oak"],
            "--pytorch-tree must be among small, .*'oak'",
        ),
        (
            optimizer_step.main,
            ["--rounds", "0"],
            "--rounds must be at least 1, got 0",
        ),
        (
            optimizer_step.main,
            ["--run-steps", "0"],
            "--run-steps must be at least 1, got 0",
        ),
        (on_device.main, ["--minutes", "0"], "--minutes must be above 0, got 0"),
        (on_device.main, ["--model", "no such"], "There is no model 'no such'"),
    ],
)
def test_a_wrong_option_is_named(
    main: Callable[..., Any],
    arguments: list[str],
    words: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--output", str(tmp_path)])
    assert stop.value.code == 2
    assert re.search(words, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
