"""The small examples, each shrunk to seconds."""

import pytest

from examples import quickstart


def test_quickstart_compares_both_optimizers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "STEPS", 4)
    quickstart.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["start", "optax.adamw", "mofo"]
    assert len(set(lines)) == 3
    assert all("task: " in line and "known before: " in line for line in lines)
