"""Writes the tables and pictures of a study from its results file."""

import pathlib

from examples.finetune.errors import InputError
from examples.finetune.files import write_text
from examples.study import pictures, rows, tables
from examples.study.evidence import Evidence


def write(directory: pathlib.Path) -> None:
    """Makes tables.md and the pictures beside a results file.

    Args:
      directory: holds rows.jsonl.

    Raises:
      InputError: it does not.
    """
    file = directory / rows.NAME
    found = rows.read(file)
    if not found:
        raise InputError(f"{file} has no rows yet")
    evidence = Evidence(found)
    text = tables.markdown(evidence)
    for name in pictures.draw(evidence, directory):
        text += f"\n![{pathlib.Path(name).stem}]({name})\n"
    write_text(directory / "tables.md", text)
    print(f"{len(found)} rows; {directory / 'tables.md'}", flush=True)
