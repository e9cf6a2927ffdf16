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
    evidence = Evidence(rows.comparable(found))
    text = tables.markdown(evidence)
    for name in pictures.draw(evidence, directory):
        text += f"\n![{pathlib.Path(name).stem}]({name})\n"
    write_text(directory / "tables.md", text)
    used, unused = len(evidence.rows), len(found) - len(evidence.rows)
    left_out = f", {unused} of other settings left out" if unused else ""
    print(f"{used} rows{left_out}; {directory / 'tables.md'}", flush=True)


def write_all(output: pathlib.Path) -> None:
    """Does `write` for every results file below a directory.

    Raises:
      InputError: there is none.
    """
    files = sorted(output.glob(f"*/{rows.NAME}"))
    if not files:
        raise InputError(f"--output {output} has no results yet")
    for file in files:
        write(file.parent)
