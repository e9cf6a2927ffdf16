"""Wrong options of the benchmarks are named before anything is written."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from examples.benchmarks import covariances, on_device, optimizer_step
from examples.finetune.command.errors import InputError


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
        (
            optimizer_step.main,
            ["--seconds", "nan"],
            "--seconds must be above 0 and finite, got nan",
        ),
        (
            optimizer_step.main,
            ["--slowest", "nan"],
            "--slowest must be above 0, got nan",
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


@pytest.mark.parametrize("main", [optimizer_step.main, on_device.main])
def test_results_need_a_directory(
    main: Callable[..., Any],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "results"
    file.touch()
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(file)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {file}: File exists.\n"


def test_unknown_models_are_named() -> None:
    with pytest.raises(InputError, match=r"among SmolLM2-135M, .*, got 'Llama 7b'"):
        covariances.main(("tiny", "Llama 7b"))
