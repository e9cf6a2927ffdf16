"""What the command can be told."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Literal

from examples.finetune.config import fill
from examples.finetune.errors import InputError
from examples.study.methods import METHODS

PROGRAM = "python -m examples.study"
RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Options:
    """Find out which optimizer forgets least, at its best learning rate.

    Does the runs of the study that are not in the results file yet, the most useful
    first, then makes tables and pictures from the file alone. The same command started
    again goes on with the next run.
    """

    data: pathlib.Path | None = None
    """Directory with gsm8k_train.jsonl, gsm8k_test.jsonl, metamathqa_val.jsonl,
    pmc_medical_val.jsonl, wikitext2_test.txt, HumanEval.jsonl.gz and piqa_valid.jsonl.
    Without it only the generated task is learned, and forgetting is measured on
    Python's own manual and library and on our knowledge questions."""
    hours: float = 2.0
    """No run is begun that would not end within these, as far as earlier runs tell."""
    budget: Literal["auto", "cpu", "gpu", "smallest"] = "auto"
    """Sizes of the runs; auto is gpu where there is one and cpu elsewhere. Each has
    results of its own."""
    output: pathlib.Path = RESULTS
    """Directory of the results: for each budget, with files and without, a folder with
    rows.jsonl, tables.md and pictures."""
    task: tuple[str, ...] = ()
    """Only runs of these tasks; without it all."""
    method: tuple[str, ...] = ()
    """Only runs of these methods; without it all."""
    model: str = "smollm2-135m-instruct"
    """As for examples.finetune."""
    cache: pathlib.Path | None = None
    """Directory for the healed model (540 MB); without it the user's cache."""
    report: bool = False
    """Run nothing; make the tables and pictures anew."""


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
