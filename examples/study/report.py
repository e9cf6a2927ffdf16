"""Writes a study's tables and pictures from its results file."""

import pathlib

from examples.finetune.command.errors import InputError
from examples.finetune.system.files import write_text
from examples.study import pictures, rows, screening, tables
from examples.study.comparing import Compared
from examples.study.first import study as first_study
from examples.study.first import tables as first_tables


def write(directory: pathlib.Path) -> None:
    """Writes tables.md beside a results file.

    Args:
      directory: the directory of rows.jsonl.

    Raises:
      InputError: there are no rows.
    """
    file = directory / rows.NAME
    found = rows.comparable(rows.read(file))
    if not found:
        raise InputError(f"{file} has no rows yet")
    compared = Compared(found)
    screened = screening.read(directory / screening.NAME)
    text = tables.markdown(compared, screened)
    drawn = pictures.draw(compared, directory)
    if screened:
        pictures.why(screened, directory / "why.png")
        drawn.append("why.png")
    for name in drawn:
        text += f"\n![{pathlib.Path(name).stem}]({name})\n"
    write_text(directory / "tables.md", text)
    print(f"{len(found)} rows; {directory / 'tables.md'}", flush=True)


def write_all(output: pathlib.Path) -> None:
    """Writes the tables of all results files below a directory, and of the first study.

    Raises:
      InputError: there is none.
    """
    files = sorted(output.rglob(rows.NAME))
    if not files:
        raise InputError(f"--output {output} has no results yet")
    for file in files:
        write(file.parent)
    page = first_study.RESULTS / "tables.md"
    write_text(page, first_tables.markdown(first_study.read()))
