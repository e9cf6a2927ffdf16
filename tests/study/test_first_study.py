"""The first study's rows, and the figures on its page."""

import pathlib
import re

import numpy as np
import pytest

from examples.study import evidence
from examples.study.first import study, tables


@pytest.fixture(scope="module")
def rows() -> study.Rows:
    """All rows of the first study."""
    return study.read()


def test_no_row_was_lost(rows: study.Rows):
    assert len(rows.all) == 118


def test_the_committed_tables_are_those_of_the_rows(rows: study.Rows):
    committed = (study.RESULTS / "tables.md").read_text()
    assert committed == tables.markdown(rows)


@pytest.mark.parametrize(
    ("page", "section", "count"),
    [("first/README.md", "What holds", 13), ("../how_to_choose.md", "With LoRA", 4)],
)
def test_pages_quote_the_tables(
    rows: study.Rows, page: str, section: str, count: int
) -> None:
    text = (pathlib.Path(evidence.__file__).parent / page).read_text()
    text = text.split(f"\n## {section}")[1].split("\n## ")[0]
    quoted = re.findall(r"\d\.\d\d \[.*?\]|[+-]0\.\d{4} \[.*?\]", text)
    made = "\n".join([*tables.seeds(rows), *tables.at_equal_loss(rows)])
    assert len(quoted) == count
    for figure in quoted:
        assert figure in made, figure


def test_the_pull_is_its_strength_times_the_sum_of_rates(rows: study.Rows):
    (row,) = rows.runs("l2_strong", rate=1e-4)
    # Two steps at a third and two thirds of the rate, then a cosine over 22 steps,
    # sampled at its steps.
    total = 1e-4 * (1 / 3 + 2 / 3 + sum(np.cos(np.pi * k / 44) ** 2 for k in range(22)))
    assert study.pull(row) == pytest.approx(1000 * total)


def test_a_ratio_by_hand(rows: study.Rows):
    measure = study.MEASURES[0]
    weak, strong = (rows.runs("adamw", rate=rate)[0] for rate in (2.5e-5, 5e-5))
    level = rows.levels[0.9]
    losses = [rows.loss(row)[0] for row in (weak, strong)]
    assert losses[0] > level[0] > losses[1]
    counts = rows.start["counts"]["prose"]["divergences"]
    logs = [
        np.log(sum(row["sets"]["prose"]["divergences"]) / sum(counts))
        for row in (weak, strong)
    ]
    wanted = np.interp(level[0], losses[::-1], logs[::-1])
    found = rows.at(rows.sweep("adamw"), level, measure)
    assert found is not None and found[0] == pytest.approx(wanted)


def test_a_level_that_is_not_between_two_rates_is_not_reached():
    assert evidence.bracketing([1.3, 1.1, 1.0, 1.2], 1.05) == 1
    assert evidence.bracketing([1.3, 1.1, 1.0, 1.2], 1.15) == 0
    assert evidence.bracketing([1.3, 1.1, 1.0, 1.2], 0.9) is None
    assert evidence.bracketing([1.1, 1.0], 1.2) is None
    assert evidence.bracketing([], 1.0) is None
