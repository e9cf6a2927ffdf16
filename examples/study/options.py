"""What the command can be told."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Literal

from examples.finetune.command.config import fill
from examples.finetune.command.errors import InputError
from examples.study.methods import METHODS

PROGRAM = "python -m examples.study"
RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Options:
    """Find out which optimizer forgets least for what it learns.

    Does the runs of the protocol that are not in the results file yet, in its order,
    then makes tables and pictures from the file alone. The same command started again
    goes on with the next run.
    """

    data: pathlib.Path | None = None
    """Directory with gsm8k_train.jsonl, gsm8k_test.jsonl, wikitext2_test.txt and
    HumanEval.jsonl.gz. Without it only tasks that need no files are learned, and drift
    is measured on Python's own manual and library in the place of WikiText-2 and
    HumanEval; those rows have a folder of their own."""
    hours: float = 2.0
    """No run is begun that would not end within these, as far as earlier runs tell."""
    plan: bool = False
    """Run nothing; print what each step of the protocol still needs, and its hours."""
    only: str = ""
    """Do one run anew, by its name in the tables, such as gsm8k/adamw/24/11/0.0001, and
    print what is measured beside the row that is kept."""
    screen: str = ""
    """Train nothing; compare directions at the start for this task, such as gsm8k."""
    report: bool = False
    """Run nothing; make the tables and pictures anew."""
    budget: Literal["auto", "cpu", "gpu", "smallest"] = "auto"
    """Sizes of the runs; auto is gpu where there is one and cpu elsewhere. Each has
    results of its own."""
    output: pathlib.Path = RESULTS
    """Directory of the results: for each budget, with files and without, a folder with
    rows.jsonl, tables.md and pictures."""
    task: tuple[str, ...] = ()
    """Only runs of these tasks; without it all."""
    step: tuple[str, ...] = ()
    """Only these steps of the protocol, by the names that --plan tells."""
    method: tuple[str, ...] = ()
    """Only runs of these methods; without it all."""
    model: str = "smollm2-135m-instruct"
    """As for examples.finetune."""
    cache: pathlib.Path | None = None
    """Directory for the healed model (540 MB); without it the user's cache."""


def parse(arguments: Sequence[str]) -> Options:
    """Fills the options from a command line and checks them.

    Raises:
      InputError: an unknown option or a value that is not allowed.
      SystemExit: with status 0, after `--help`.
    """
    options = fill(Options(), PROGRAM, arguments)
    if not 0 <= options.hours < math.inf:
        raise InputError(f"--hours must be >= 0, got {options.hours:g}")
    if options.data and not options.data.is_dir():
        raise InputError(f"--data must be a directory, got {options.data}")
    for name in options.method:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise InputError(f"--method must be of {known}, got {name!r}")
    return options
