"""The stored rows, their tables, and the figures on the study's page."""

import pathlib
import re

import pytest

from examples.study import options, rows, screening, tables
from examples.study.comparing import Compared
from examples.study.first import study as first_study

STORED = options.RESULTS / "cpu"


@pytest.fixture(scope="module")
def made() -> str:
    """The tables, made from the rows."""
    found = rows.comparable(rows.read(STORED / rows.NAME))
    return tables.markdown(Compared(found), screening.read(STORED / screening.NAME))


def test_the_committed_tables_are_those_of_the_rows(made: str):
    committed, _, pictures = (STORED / "tables.md").read_text().partition("\n![")
    assert committed == made
    for name in re.findall(r"\]\((.*?)\)", pictures):
        assert (STORED / name).exists()


def test_the_page_quotes_the_tables(made: str):
    page = pathlib.Path(rows.__file__).with_name("README.md").read_text()
    results = page.partition("## Results so far")[2]
    quoted = set(
        re.findall(r"\d\.\d\d \[[^]]*\d\.\d\d\]|[+-]0\.\d{4} \[[^]]*\]", results)
    )
    own = made + (first_study.RESULTS / "tables.md").read_text()
    assert len(quoted) > 50
    assert not {figure for figure in quoted if " ".join(figure.split()) not in own}
