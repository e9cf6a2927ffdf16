"""The small examples, each shrunk to seconds."""

import json
import pathlib
import sys

import pytest

from examples import quickstart
from examples.benchmarks import optimizer_step


def test_quickstart_compares_both_optimizers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "STEPS", 4)
    quickstart.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["start", "optax.adamw", "mofo"]
    assert len(set(lines)) == 3
    assert all("task: " in line and "known before: " in line for line in lines)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_benchmark_measures_every_optimizer(
    dtype: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(optimizer_step, "SHAPES", ((8, 6), (5,)))
    file = tmp_path / "step.json"
    arguments = ["--rounds", "2", "--momentum-dtype", dtype, "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["optimizer_step", *arguments])
    optimizer_step.main()
    measured = json.loads(file.read_text())
    assert measured["coordinates"] == 8 * 6 + 5
    assert measured["momentum_dtype"] == dtype
    assert measured["optimizers"]["adamw"]["ratio"] == [1, 1, 1]
    printed = capsys.readouterr().out
    for name, row in measured["optimizers"].items():
        assert name in printed
        least, median, most = row["ratio"]
        assert 0 < least <= median <= most
