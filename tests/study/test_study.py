"""A study of the smallest size: killed, started again, and its rows."""

import os
import pathlib
import signal
from typing import Any

import pytest

from examples.study import __main__ as command
from examples.study import plan, rows, study
from examples.study.plan import Run
from examples.study.training import Course, Trainer
from tests.finetune import small
from tests.study import made_rows
from tests.study.made_data import write_data

RUNS = [
    Run(plan.BASE, "adamw", 0.0, healed=False),
    Run("problems", "mofo", 1e-3),
    Run("problems", "wise", 2e-3, share=0.5),
    Run("problems", "adamw", 2e-3),
]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with the tiny model, in Hugging Face layout."""
    return small.write_model(tmp_path_factory.mktemp("tiny"))


def test_a_killed_study_goes_on_where_it_was(
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(study, "plan", lambda tasks, sequence: RUNS)
    trained: list[tuple[str, float]] = []
    train, add = Trainer.train, rows.add

    def counted(self: Trainer, optimizer: str, config: Any, peak: float, *rest: Any):
        trained.append((optimizer, peak))
        return train(self, optimizer, config, peak, *rest)

    def add_and_kill(path: pathlib.Path, row: rows.Row) -> None:
        add(path, row)
        if row["key"]["method"] == "mofo":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train", counted)
    monkeypatch.setattr(rows, "add", add_and_kill)
    options = [
        *("--model", str(tiny_model), "--budget", "smallest"),
        *("--output", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")),
    ]
    handler = signal.getsignal(signal.SIGTERM)
    assert command.main(options) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    assert "the same command goes on" in capsys.readouterr().err
    file = tmp_path / "results" / "smallest-generated" / "rows.jsonl"
    before = file.read_text().splitlines()
    tasks = [row["key"]["task"] for row in rows.read(file)]
    assert tasks == ["base", "base", "problems"]

    monkeypatch.setattr(rows, "add", add)
    assert command.main(options) == 0
    # The model was healed once, and one run of AdamW gave two rows.
    assert trained == [("adamw", 5e-5), ("mofo", 1e-3), ("adamw", 2e-3)]
    assert file.read_text().splitlines()[:3] == before
    found = rows.read(file)
    assert [row["key"]["method"] for row in found[3:]] == ["wise", "adamw"]
    assert (file.parent / "tables.md").exists()
    _check_rows(found)

    assert command.main(options) == 0
    assert len(trained) == 3


def _check_rows(found: list[rows.Row]) -> None:
    start, mofo, half_way, whole = found[1], *found[2:]
    for row in (mofo, half_way, whole):
        measured = row["sets"]["problems"]
        assert len(measured["losses"]) == len(start["sets"]["problems"]["losses"])
        assert min(measured["divergences"]) > 0
        assert set(row["choices"]["knowledge"]) <= {"0", "1"}
    # Two steps of at most 0.002 over the schedule; interpolation halves the way.
    assert half_way["distance"] == pytest.approx(whole["distance"] / 2, abs=2e-4)
    assert 0 < mofo["distance"] < whole["distance"]
    assert mofo["moved"] < 0.5 < whole["moved"]
    nearer, farther = (
        sum(row["sets"]["prose"]["divergences"]) for row in (half_way, whole)
    )
    assert 0 < nearer < farther


def test_a_sequence_is_measured_after_each_stage(
    tmp_path: pathlib.Path, tiny_model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    run = Run(plan.SEQUENCE, "adamw", 1e-2, replay=plan.REPLAYED)
    monkeypatch.setattr(study, "plan", lambda tasks, sequence: [run] * sequence)
    learned: list[Course] = []
    train = Trainer.train

    def seen(self: Trainer, *given: Any):
        learned.append(given[4])
        return train(self, *given)

    monkeypatch.setattr(Trainer, "train", seen)
    options = ["--model", str(tiny_model), "--budget", "smallest", "--data", str(data)]
    output = ["--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert command.main([*options, *output]) == 0
    start, row = rows.read(tmp_path / "smallest" / "rows.jsonl")
    assert set(plan.STAGES) <= set(start["sets"])
    # After healing; the later stages have a fifth of their rows from before.
    sizes = [len(course.examples) for course in learned[1:]]
    assert sizes == [10, 10, 6]  # 8 and 5 of their own
    stages = row["stages"]
    assert len(stages) == len(plan.STAGES)
    assert stages[0]["distance"] < stages[1]["distance"] < stages[2]["distance"]
    for number, name in enumerate(plan.STAGES):
        before = stages[number - 1] if number else start
        fell = (sum(one["sets"][name]["losses"]) for one in (stages[number], before))
        assert next(fell) < next(fell), name
    assert "| AdamW with replay |" in (tmp_path / "smallest" / "tables.md").read_text()


def test_nothing_is_begun_that_would_not_end(
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    # Earlier rows took a minute.
    longer = Run("problems", "mofo", 1e-3, times=plan.LONGER)
    runs = [longer, RUNS[1], Run(plan.SEQUENCE, "mofo", 1e-3)]
    monkeypatch.setattr(study, "plan", lambda tasks, sequence: runs)
    begun: list[Run] = []
    monkeypatch.setattr(study.Study, "do", lambda self, run, derived: begun.append(run))
    for row in made_rows.rows():
        rows.add(tmp_path / "smallest-generated" / "rows.jsonl", row)
    options = ["--model", str(tiny_model), "--budget", "smallest", "--hours", "0.05"]
    assert command.main([*options, "--output", str(tmp_path)]) == 0
    # Three minutes are enough for one, but for none that is ten or four times as long.
    assert begun == [RUNS[1]]
    assert "The hours are over; 2 runs are missing" in capsys.readouterr().out


def test_replay_mixes_earlier_rows_in():
    from examples.study.sequence import replayed

    now, before = [f"now {n}" for n in range(8)], [f"before {n}" for n in range(50)]
    mixed: list[Any] = replayed(now, before, plan.REPLAYED)  # type: ignore[arg-type]
    assert mixed[:8] == now and len(mixed) == 10
    assert set(mixed[8:]) <= set(before)
    assert replayed(now, [], plan.REPLAYED) == now  # type: ignore[arg-type]
    assert replayed(now, before, 0.0) == now  # type: ignore[arg-type]
