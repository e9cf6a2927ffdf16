"""What a run shows at its end."""

import json
import pathlib
from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from examples.finetune.command.config import Config, to_json
from examples.finetune.running import plots, report

BASE: dict[str, Any] = {
    "task_loss": 1.5,
    "task_accuracy": 0.25,
    "retention": {"knowledge": 0.5, "prose": 3.25, "own": 2.0},
    "counts": {"task": 40, "knowledge": 4},
}


def arm(**changed: Any) -> dict[str, Any]:
    return {
        **BASE,
        "kl_to_base": {"task_prompts": 0.5, "prose": 0.125, "own": 0.25},
        "distance": {"total": 12.345, "mlp": 10.0, "attention": 2.0},
        "relative_distance": {"total": 0.5, "mlp": 0.25, "attention": 0.125},
        "moved_fraction": {"ever": 0.9, "per_step": 0.15},
        "ever_moved": {"mlp": 0.875},
        "selected_share": {"mlp": 0.1625},
        "mask_overlap": 0.75,
        "steps": 1000,
        "tokens": 1234567,
        "learning_rate": 3e-4,
        "seconds_per_step": 1.25,
        "params_checksum": "0" * 64,
        **changed,
    }


ARMS = {"adamw": arm(task_loss=0.75), "mofo": arm(task_loss=None, task_accuracy=None)}
METRICS = {
    name: [
        {"arm": name, "step": 1, "loss": 2.0, "moved_fraction": 0.5},
        {"arm": name, "step": 2, "loss": None, "moved_fraction": 0.5},
    ]
    for name in ARMS
}
SAMPLES = {
    "Prompt": ["What is 1 + 1?"],
    "Right answer": ["#### 2"],
    "base": ["```python\n2\n```"],
    "adamw": ["#### 2"],
    "mofo": [""],
}


def test_the_table_has_a_line_for_every_measurement() -> None:
    lines = dict(report.table(BASE, ARMS))
    assert lines[""] == ["base", "adamw", "mofo"]
    assert lines["learning rate"] == ["-", "0.0003", "0.0003"]
    assert lines["task loss"] == ["1.500", "0.750", "-"]
    assert lines["task exact match"] == ["25.0%", "25.0%", "-"]
    assert lines["knowledge accuracy"] == ["50.0%"] * 3
    assert lines["own loss"] == ["2.000"] * 3
    assert lines["KL to base, task prompts"] == ["-", "0.5000", "0.5000"]
    assert lines["KL to base, own"] == ["-", "0.2500", "0.2500"]
    assert lines["distance from base"] == ["-", "12.35", "12.35"]
    assert lines["coordinates moved a step"] == ["-", "15.0%", "15.0%"]
    assert lines["selected as at the step before"] == ["-", "75.0%", "75.0%"]
    assert lines["tokens"] == ["-", "1,234,567", "1,234,567"]


def test_what_moved_has_a_line_for_every_kind_of_tensor() -> None:
    # A run of an earlier version measured less.
    earlier = arm()
    for name in ("relative_distance", "ever_moved", "selected_share"):
        del earlier[name]
    assert report.movement_table({"adamw": arm(), "mofo": earlier}) == [
        ("", ["adamw", "mofo"]),
        ("selected a step, mlp", ["16.2%", "-"]),
        ("ever moved, mlp", ["87.5%", "-"]),
        ("distance, attention", ["2.000", "2.000"]),
        ("distance, mlp", ["10.000", "10.000"]),
        ("relative distance, attention", ["0.12500", "-"]),
        ("relative distance, mlp", ["0.25000", "-"]),
    ]


def test_writes_everything(tmp_path: pathlib.Path) -> None:
    config = Config(output=tmp_path)
    report.write(config, BASE, ARMS, SAMPLES, METRICS)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"config": to_json(config), "base": BASE, "arms": ARMS}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*METRICS["adamw"], *METRICS["mofo"]]
    for picture in ("training.png", "forgetting.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.md").read_text()
    assert "| task loss | 1.500 | 0.750 | - |" in text
    assert "| distance, mlp | 10.000 | 10.000 |" in text
    assert "Exact match is of 40 answers, and accuracy of 4 questions." in text
    assert "(training.png)" in text
    assert "(forgetting.png)" in text
    assert "**Right answer**\n\n```text\n#### 2\n```" in text
    # A fence in an answer does not end the quotation.
    assert "````text\n```python\n2\n```\n````" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "logged steps. A coordinate has ever moved"),
        ({"param_dtype": "bfloat16"}, "Updates that bfloat16 rounds to zero"),
        ({"unselected_scale": 0.1}, "With --unselected-scale, the others count too."),
        (
            {"param_dtype": "bfloat16", "unselected_scale": 0.1},
            "do not count. With --unselected-scale, the others count too.",
        ),
    ],
)
def test_says_which_coordinates_count_as_selected(
    tmp_path: pathlib.Path, changed: dict[str, Any], said: str
) -> None:
    report.write(Config(output=tmp_path, **changed), BASE, ARMS, {}, METRICS)
    assert said in (tmp_path / "report.md").read_text()


def test_bars_are_intervals_over_the_items_that_were_judged(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    plots.learned_and_forgotten(tmp_path / "x.png", BASE, {"adamw": arm()})
    text, _, knowledge = drawn[0].axes
    # A binomial share p of n items has the variance p (1 - p) / n.
    task, wrong = (196 * np.sqrt(p * (1 - p) / n) for p, n in [(0.25, 40), (0.5, 4)])
    for axes, place, half in [
        (text, (25, (3.25 + 2) / 2), (task, 0)),
        (knowledge, (25, 50), (task, wrong)),
    ]:
        bars = axes.collections
        ends = [bar.get_segments()[0] for bar in bars]
        for axis, (low, high) in enumerate(ends):
            np.testing.assert_allclose((low + high) / 2, place)
            np.testing.assert_allclose(high[axis] - low[axis], 2 * half[axis])


def test_prints_the_table(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    report.show(report.table(BASE, ARMS), tmp_path)
    shown = capsys.readouterr().out
    assert "adamw" in shown
    assert "12.35" in shown
    assert str(tmp_path / "report.md") in shown
