"""Does every fault to a real run, and writes what became of it.

python -m tests.faults                   all of them; writes tests/faults/results.md
python -m tests.faults --only SIGKILL    those with a word in their name; writes nothing
"""

import dataclasses
import pathlib
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence

import jax
import tqdm

from examples.finetune import config
from examples.finetune.command import exit_status
from examples.finetune.files import write_text
from tests.faults import directories, inputs, processes
from tests.faults.lab import Case, Lab

CASES: list[Case] = [*processes.CASES, *directories.CASES, *inputs.CASES]
RESULTS = pathlib.Path(__file__).with_name("results.md")

Row = tuple[str, str, str, str, bool]


@dataclasses.dataclass(frozen=True)
class Options:
    """Does faults to runs of examples.finetune and writes the table of them."""

    only: str = ""
    """Only faults with this in their names; the table is shown and not written."""
    output: pathlib.Path = RESULTS
    """The table's file."""


def attempt(case: Case, lab: Lab) -> Row:
    """Does one fault and says what became of it."""
    try:
        outcome = case.work(lab)
    except Exception as error:
        traceback.print_exc()
        return case.fault, case.promise, f"FAILED: {error}", "?", False
    return case.fault, case.promise, outcome.happened, outcome.lost, True


def table(rows: Sequence[Row], seconds: float) -> str:
    """The results as Markdown."""
    passed = sum(row[-1] for row in rows)
    lines = [
        "# What becomes of a fine-tuning run when things go wrong",
        "",
        f"Written by `python -m tests.faults` in {seconds / 60:.0f} minutes with jax "
        f"{jax.__version__} on {platform.system()}, CPU. {passed} of {len(rows)} cases "
        "came out as promised. The run has four steps unless another number is given; "
        "bit for bit means the `params_sha256` of an unbroken run.",
        "",
        "| fault | promised | what happened | lost | passed |",
        "|---|---|---|---|---|",
    ]
    for *texts, good in rows:
        cells = (text.replace("|", "\\|").replace("\n", " ") for text in texts)
        lines.append(f"| {' | '.join(cells)} | {'yes' if good else '**no**'} |")
    return "\n".join(lines) + "\n"


def run(options: Options) -> bool:
    """Does the faults, and returns whether all came out as promised."""
    chosen = [case for case in CASES if options.only in case.fault]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Some cases run as another user, who must be able to come here.
        pathlib.Path(folder).chmod(0o755)
        lab = Lab(pathlib.Path(folder))
        rows = [attempt(case, lab) for case in tqdm.tqdm(chosen, unit="case")]
    text = table(rows, time.monotonic() - began)
    if options.only:
        print(text)
    else:
        write_text(options.output, text)
    return all(row[-1] for row in rows)


def main(arguments: list[str]) -> int:
    """Runs the command; its status is 0 where all came out as promised, else 1."""
    good = []

    def work() -> None:
        options = config.fill(Options(), "python -m tests.faults", arguments)
        good.append(run(options))

    status = exit_status(work, "nothing was written.")
    return status or int(not good[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
