"""The room on the disk that a run asks for before it begins."""

import pathlib

import pytest

from examples.finetune.command.config import parse
from examples.finetune.running import checks, inputs
from tests.finetune import small


class Asked(Exception):
    pass


def needed(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> dict[pathlib.Path, int]:
    """The bytes that a run with two optimizers asks for, by directory."""

    def check_room(needed: dict[pathlib.Path, int]) -> None:
        raise Asked(needed)

    monkeypatch.setattr(checks, "check_room", check_room)
    model = small.write_model(run.parent / "model")
    given = [*small.options(model, run), "--export", str(run.parent / "exported")]
    with pytest.raises(Asked) as asked:
        inputs.find(parse([*given, *words]))
    return asked.value.args[0]


def test_every_learning_rate_needs_its_own_room(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, exported = tmp_path / "run", tmp_path / "exported"
    once = needed(run, monkeypatch)
    swept = needed(run, monkeypatch, "--learning-rate", "1e-4", "2e-4")
    assert swept[exported] == 2 * once[exported]
    # Two checkpoints for each arm, and one more for all.
    one = once[run] // 5
    assert once[run] == 5 * one
    assert swept[run] == 9 * one
    (run / "arms/adamw@0.0001/checkpoints/1").mkdir(parents=True)
    resumed = needed(run, monkeypatch, "--learning-rate", "1e-4", "2e-4")
    assert resumed[run] == 7 * one
    assert resumed[exported] == swept[exported]
