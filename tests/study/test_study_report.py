"""Tables and pictures of made-up rows."""

import pathlib

import matplotlib.image
import numpy as np
import pytest

from examples.finetune.errors import InputError
from examples.finetune.files import write_json_lines
from examples.study import __main__ as command
from examples.study import report
from examples.study.evidence import Evidence
from examples.study.plan import FINALISTS, LONGER, SEQUENCE, STAGES
from examples.study.rows import Row
from examples.study.tables import SECTIONS, markdown
from tests.study import made_rows


def cells(text: str, start: str) -> list[str]:
    """The cells of the table's line that begins with the given ones."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text: str, heading: str) -> str:
    """A section of the page without its heading."""
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def sequence(method: str, losses: list[list[float]], replay: float = 0.0) -> Row:
    """A continual run: after each stage the losses on the three tasks."""
    stages = []
    for after in losses:
        found = made_rows.measured(1.0, 0.25, 0.0, 0.0)
        found["sets"].pop(made_rows.TASK)
        for name, loss in zip(STAGES, after, strict=True):
            found["sets"][name] = {"losses": made_rows.sums([loss] * 2)}
        stages.append(found)
    row = made_rows.row(method, 2e-4, 1.0, 0.1)
    return {"key": row["key"] | {"task": SEQUENCE, "replay": replay}, "stages": stages}


def test_every_section_says_what_is_missing_and_what_runs_it():
    text = markdown(Evidence([made_rows.base()]))
    for heading, _ in SECTIONS:
        said = section(text, heading)
        assert "Not yet run: " in said, heading
        assert "`python -m examples.study --data DIR" in said, heading


def test_tables_hold_the_rows_numbers():
    text = markdown(Evidence(made_rows.rows()))
    level = section(text, "Methods at equal task loss").split("90% of AdamW's best")[1]
    level = level.split("###")[0]
    assert cells(level, "MoFO 0.15")[1:] == [
        *("2", "0.0126 [0.0126, 0.0126]", "0.63 [0.63, 0.63]"),
        *("+0.2000 [+0.2000, +0.2000]", "+0.0000 [+0.0000, +0.0000]"),
    ]
    front = section(text, "The front of learned against forgotten")
    assert [line.split(" | ")[1:3] for line in front.splitlines()[3:]] == [
        ["MoFO 0.15", "0.0002"],
        ["AdamW", "0.0001"],
        ["MoFO 0.15", "0.0001"],
    ]
    every = section(text, "Every row")
    assert cells(every, "AdamW | 0.0004")[2:] == [
        *("1.1000", "0.9000 [0.9000, 0.9000]", "0.0800 [0.0800, 0.0800]"),
        "0.1600 [0.1600, 0.1600]",
        *["+0.9000 [+0.9000, +0.9000]"] * 2,
        *("1, 1 (1.00)", "1/2", "0.40", "1.50"),
    ]
    fraction = section(text, "MoFO's fraction")
    assert cells(fraction, "problems | 0.0002 | 0.15")[3] == "1.0000"
    assert cells(fraction, "problems | 0.0002 | 1")[4] == "0.0400 [0.0400, 0.0400]"


def test_what_sweeps_do_not_reach_stays_empty():
    rows = [*made_rows.rows()[:4], made_rows.row("half", 1e-4, 1.6, 0.1)]
    text = section(markdown(Evidence(rows)), "Methods at equal task loss")
    level = text.split("90% of AdamW's best")[1].split("###")[0]
    assert cells(level, "half fine-tuning")[2:] == ["-"] * 4


def test_seeds_are_compared_with_the_same_seed():
    rows = [made_rows.base()]
    for seed, (own, other) in enumerate(((1.0, 1.1), (1.2, 1.5), (1.1, 1.3))):
        for method, loss in (("adamw", own), ("mofo", other)):
            rate = FINALISTS[method]
            rows.append(made_rows.row(method, rate, loss, 0.1, seed=seed))
    text = section(markdown(Evidence(rows)), "Seeds")
    half = 4.302653 * np.std([0.1, 0.3, 0.2], ddof=1) / np.sqrt(3)
    found = cells(text, "problems | MoFO 0.15")
    assert found[2:4] == ["3", "1.3000"]
    assert found[4] == f"+0.2000 [{0.2 - half:+z.4f}, {0.2 + half:+z.4f}]"


def test_backward_transfer_is_what_later_stages_did():
    rows = [
        sequence("half", [[1.0, 3.0, 3.0], [1.5, 2.0, 3.0], [1.6, 2.2, 1.0]]),
        sequence("adamw", [[1.0, 3.0, 3.0], [1.5, 2.0, 3.0], [2.0, 2.5, 0.8]]),
        sequence("mofo", [[1.0, 3.0, 3.0], [1.5, 2.0, 3.0], [2.0, 2.5, 0.8]], 0.2),
    ]
    base = made_rows.base()
    base["counts"] |= dict.fromkeys(STAGES, base["counts"]["prose"])
    evidence = Evidence([base, made_rows.row("adamw", 1e-4, 1.0, 0.1), *rows])
    text = section(markdown(evidence), "One task after another")
    found = cells(text, "half fine-tuning")
    assert found[1:4] == ["1.6000", "2.2000", "1.0000"]
    assert found[4].startswith("1.6000 ")
    assert found[5].startswith("-0.4000 ")  # -0.6 and -0.2
    assert found[6].startswith("0.2500 ")
    # Of means 1.6 and 5.3 / 3, and of transfers -0.4 and -0.75.
    assert found[7:] == [
        *("-0.1667 [-0.1667, -0.1667]", "+0.3500 [+0.3500, +0.3500]"),
        "1.00 [1.00, 1.00]",
    ]
    # AdamW with replay is not there.
    assert cells(text, "MoFO 0.15 with replay")[7:] == ["-"] * 3


def test_long_runs_are_compared_with_adamw_s_best():
    rows = [
        made_rows.row("adamw", 1e-4, 1.2, 0.01, 0.1, times=LONGER),
        made_rows.row("adamw", 2e-4, 1.0, 0.04, 0.3, times=LONGER),
        made_rows.row("mofo", 1e-4, 1.1, 0.03, 0.1, times=LONGER),
    ]
    evidence = Evidence([made_rows.base(), *rows])
    found = cells(
        section(markdown(evidence), "Ten times longer"),
        f"problems | MoFO 0.15, {LONGER} times longer",
    )
    assert found[6:] == [
        *("+0.1000 [+0.1000, +0.1000]", "0.75 [0.75, 0.75]"),
        # At 1.1 AdamW's is the geometric mean of 0.01 and 0.04.
        *("-0.2000 [-0.2000, -0.2000]", "1.50 [1.50, 1.50]", "0.10"),
    ]


def test_healing_is_told_from_both_starts():
    healed, before = made_rows.base(), made_rows.base(healed=False)
    healed["sets"]["prose"]["losses"] = made_rows.sums([2.5] * 2)
    # Measured on a task that only runs from the healed start learn.
    healed["sets"]["medicine"] = healed["sets"]["prose"]
    healed["choices"] = {"knowledge": "1011"}
    text = section(
        markdown(Evidence([before, healed])), "The start, before and after healing"
    )
    assert cells(text, "loss, prose")[1:] == [
        *("3.000", "2.500", "-0.500 [-0.500, -0.500]"),
    ]
    assert "medicine" not in text
    assert cells(text, "accuracy, knowledge")[1:] == ["50.0%", "75.0%", "1 lost, 2 won"]


def test_command_makes_tables_and_pictures_from_rows_alone(tmp_path: pathlib.Path):
    directory = tmp_path / "smallest"
    directory.mkdir()
    rows = [*made_rows.rows(), made_rows.row("wise", 4e-4, 1.5, 0.001, share=0.5)]
    rows.append(made_rows.row("adamw", 2e-4, 0.9, 0.1, times=LONGER))
    write_json_lines(directory / "rows.jsonl", rows)
    options = ["--report", "--output", str(tmp_path)]
    assert command.main(options) == 0
    drawn = ["fraction", "front_problems", "longer", "predictors", "summary"]
    files = {path.name for path in directory.iterdir()}
    assert files == {*(f"{name}.png" for name in drawn), "rows.jsonl", "tables.md"}
    text = (directory / "tables.md").read_text()
    for name in drawn:
        assert f"({name}.png)" in text
        picture = matplotlib.image.imread(directory / f"{name}.png")
        assert picture.shape[0] > 300 and np.ptp(picture[..., :3]) > 0.9
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert command.main(options) == 0
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_rows_of_other_sizes_are_left_out(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    other = made_rows.row("half", 1e-4, 0.1, 0.1)
    other["key"]["budget"]["steps"] += 1
    write_json_lines(tmp_path / "rows.jsonl", [other, *made_rows.rows()])
    report.write(tmp_path)
    assert "6 rows, 1 of other settings left out" in capsys.readouterr().out
    assert "half fine-tuning" not in (tmp_path / "tables.md").read_text()


def test_a_report_needs_rows(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match=r"--output .* has no results yet"):
        report.write_all(tmp_path)
    with pytest.raises(InputError, match=r"rows\.jsonl has no rows yet"):
        report.write(tmp_path)
