"""The stored rows, their tables, and the figures on the study's page."""

import itertools
import pathlib
import re

import pytest

from examples.finetune.model.packaged import DEFAULT_MODEL
from examples.study import options, rows, screening, tables
from examples.study.comparing import Compared
from examples.study.first import study as first_study

STORED = sorted(file.parent for file in options.RESULTS.rglob(rows.NAME))
FIRST_MODEL = options.RESULTS / DEFAULT_MODEL / "cpu"
PAGE = pathlib.Path(rows.__file__).with_name("README.md")
ADAMW, BATCHES, RULE = "AdamW", "AdamW, batches of 16", "inverse input covariance 0.3"
FILTERED = f"{RULE}, filter behind"
DRIFTS = ["KL, prose", "KL, code", "KL, chat", "KL, prompts"]
RISE, MARGINS = "prose loss rose by", "log-odds of right answers, minus AdamW's"
OVER = " over AdamW's"
PAGES = [(1, "how_to_choose.md"), (2, "README.md")]
# The methods and columns of the rows of three tables on the page, which have a column
# for each task and length.
SHOWN = [
    [
        ("levels", ""),
        *((RULE, name + OVER) for name in DRIFTS),
        *itertools.product((RULE, ADAMW), DRIFTS[:1]),
        *itertools.product((RULE, ADAMW), [RISE]),
        *itertools.product([RULE], (MARGINS, "time of a step over AdamW's")),
    ],
    [
        *((BATCHES, name + OVER) for name in DRIFTS[:3]),
        *((RULE, f"{name} over {BATCHES}") for name in DRIFTS[:3]),
    ],
    [
        *((FILTERED, name + OVER) for name in DRIFTS),
        *itertools.product([FILTERED], (RISE, MARGINS, "time of a step over AdamW's")),
        *((FILTERED, f"{name} over {BATCHES}") for name in DRIFTS[:3]),
    ],
]


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


def read_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    """Returns the tables of a page in Markdown, each with the heading above it."""
    found: list[tuple[str, list[list[str]]]] = []
    heading, before = "", ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append((heading, []))
            if not line.startswith("|---"):
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                found[-1][1].append(cells)
        before = line
    return found


def made_cells(directory: pathlib.Path) -> dict[tuple[str, str, str], str]:
    """Returns the cells of results by task and length, method and column."""
    text = (directory / "tables.md").read_text()
    main, _, rest = text.partition("## At the 90% level")
    cells = {}
    for place, (heads, *body) in read_tables(main):
        pairs = itertools.pairwise(["", *heads])
        names = [last + OVER if name == OVER.strip() else name for last, name in pairs]
        for method, *values in body:
            for name, value in zip(names[1:], values, strict=True):
                cells[place, method, name] = value
    for heading, (heads, *body) in read_tables(rest):
        if heading == "Levels":
            for task, steps, start, _, level, _ in body:
                cells[f"{task}, {steps} steps", "levels", ""] = f"{start}, {level}"
        if heading == "What the protocol decides" and heads[1] == "claim":
            for method, claim, _, _, which, _ in body:
                name = f"{claim.partition(' at most')[0]} over {BATCHES}"
                for part in re.findall(r"(\w+) (\d+): ([^]]*\])", which):
                    place = f"{part[0]}, {part[1]} steps"
                    cells.setdefault((place, method, name), part[2])
    return cells


def test_the_page_has_the_tables_of_the_deciding_seeds():
    cells = made_cells(FIRST_MODEL)
    shown = [
        table for _, table in read_tables(PAGE.read_text()) if table[0][1] == "GSM8K"
    ]
    for (heads, *body), rows_shown in zip(shown, SHOWN, strict=True):
        places = [
            f"{task.lower()}, {length or '24 steps'}"
            for task, _, length in (head.partition(", ") for head in heads[1:])
        ]
        assert body == [
            [row[0], *(cells.get((place, *one), "-") for place in places)]
            for row, one in zip(body, rows_shown, strict=True)
        ]


def test_the_pages_quote_the_tables():
    stored = "".join(
        (directory / "tables.md").read_text()
        for directory in (*STORED, first_study.RESULTS)
    )
    # Other estimators, which only the deviations from the protocol mention.
    sections = re.split(r"^## ", stored, flags=re.MULTILINE)
    others = ("At the 90% level", "The first tables,")
    own = "".join(part for part in sections if not part.startswith(others))
    results, _, deviations = (
        PAGE.read_text().partition("## Results so far")[2].partition("## Deviations")
    )
    pages = [PAGE.with_name("steps.md"), *(PAGE.parents[i] / name for i, name in PAGES)]
    texts = [(deviations, stored), (results, own)]
    texts += [(page.read_text(), own) for page in pages]
    for text, allowed in texts:
        quoted = re.findall(r"[+-]?\d\.\d\d+\s+\[[^]]*\d\.\d\d+\]", text)
        assert len(quoted) > 5
        figures = {" ".join(figure.split()) for figure in quoted}
        assert not {figure for figure in figures if figure not in allowed}
