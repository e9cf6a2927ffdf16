"""The command's options."""

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
    """Compare how much optimizers forget for what they learn.

    Performs the runs of the protocol that are not in the results file yet, in order,
    then makes the tables and pictures from the file. If interrupted, the same command
    continues with the next run.
    """

    data: pathlib.Path | None = None
    """Directory with gsm8k_train.jsonl, gsm8k_test.jsonl, wikitext2_test.txt and
    HumanEval.jsonl.gz. Without it, only tasks that need no files are used, and drift is
    measured on Python's own manual and library instead of WikiText-2 and HumanEval;
    these rows have a separate directory."""
    hours: float = 2.0
    """Begin no run that would exceed these hours, as estimated from earlier runs."""
    plan: bool = False
    """Run nothing; print what each step of the protocol still needs, and its hours."""
    only: str = ""
    """Repeat one run, named as in the tables, such as gsm8k/adamw/24/11/0.0001, and
    print its measurements beside those of the stored row."""
    screen: str = ""
    """Train nothing; compare directions at the start for this task, such as gsm8k."""
    report: bool = False
    """Run nothing; make the tables and pictures from the stored rows."""
    budget: Literal["auto", "cpu", "gpu", "smallest"] = "auto"
    """Sizes of the runs; auto is gpu on a machine with one and cpu elsewhere. Each has
    separate results."""
    output: pathlib.Path = RESULTS
    """Directory of the results, with a subdirectory for each model and budget, with
    files and without, that has rows.jsonl, tables.md and pictures."""
    task: tuple[str, ...] = ()
    """Only runs of these tasks; all by default."""
    step: tuple[str, ...] = ()
    """Only these steps of the protocol, named as --plan prints them. For another model,
    confirmation has what the first model chose."""
    method: tuple[str, ...] = ()
    """Only runs of these methods, named as in the tables' runs; all by default."""
    model: str = "smollm2-135m-instruct"
    """Model, as for examples.finetune."""
    cache: pathlib.Path | None = None
    """Directory for the healed model (540 MB); the user's cache by default."""


def parse(arguments: Sequence[str]) -> Options:
    """Fills the options from a command line and checks them.

    Raises:
      InputError: a value is not allowed.
      SystemExit: as for `fill`.
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
