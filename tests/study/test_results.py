"""The stored rows, their tables, and the figures on the study's page."""

import pathlib
import re

import pytest

from examples.study import options, rows, screening, tables
from examples.study.comparing import Compared
from examples.study.first import study as first_study

STORED = sorted(file.parent for file in options.RESULTS.rglob(rows.NAME))


@pytest.mark.parametrize("directory", STORED, ids=lambda path: path.parent.name)
def test_the_committed_tables_are_those_of_the_rows(directory: pathlib.Path):
    kept = rows.read(directory / rows.NAME)
    found = rows.comparable(kept)
    assert len(found) == len(kept)
    made = tables.markdown(Compared(found), screening.read(directory / screening.NAME))
    committed, _, pictures = (directory / "tables.md").read_text().partition("\n![")
    assert committed == made
    for name in re.findall(r"\]\((.*?)\)", pictures):
        assert (directory / name).exists()


def test_the_pages_quote_the_tables():
    folder = pathlib.Path(rows.__file__).parent
    page, steps = (folder / name for name in ("README.md", "steps.md"))
    results = page.read_text().partition("## Results so far")[2] + steps.read_text()
    quoted = set(
        re.findall(r"\d\.\d\d \[[^]]*\d\.\d\d\]|[+-]?0\.\d{4} \[[^]]*\]", results)
    )
    own = "".join(
        (directory / "tables.md").read_text()
        for directory in (*STORED, first_study.RESULTS)
    )
    assert len(quoted) > 50
    assert not {figure for figure in quoted if " ".join(figure.split()) not in own}
