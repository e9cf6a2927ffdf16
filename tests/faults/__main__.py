"""Injects every fault into a real run, and writes the outcomes.

python -m tests.faults                   all of them
python -m tests.faults --only SIGKILL    those whose names contain this, again

The table is written to tests/faults/results.md, its rows to results.json beside it.
"""

import dataclasses
import pathlib
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import tqdm

from examples.finetune.command import config
from examples.finetune.command.status import exit_status
from examples.finetune.system.files import read_json, write_json, write_text
from tests.faults import directories, disks, inputs, kinds, processes
from tests.faults.lab import Case, Lab

CASES: list[Case] = [
    *processes.CASES,
    *directories.CASES,
    *disks.CASES,
    *inputs.CASES,
    *kinds.CASES,
]
RESULTS = pathlib.Path(__file__).with_name("results.json")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Injects faults into runs of examples.finetune and writes a table of outcomes."""

    only: tuple[str, ...] = ()
    """Only faults whose names contain one of these; other rows are kept."""
    output: pathlib.Path = RESULTS
    """File of the rows; the table is written beside it."""


def attempt(case: Case, lab: Lab) -> Row:
    """Injects one fault and returns the outcome."""
    began = time.monotonic()
    try:
        happened, lost = case.work(lab)
        passed = True
    except Exception as error:
        traceback.print_exc()
        happened, lost, passed = f"failed: {error}", "unknown", False
    return {
        "promised": case.promise,
        "happened": happened,
        "lost": lost,
        "passed": passed,
        "seconds": round(time.monotonic() - began, 1),
    }


def table(rows: Mapping[str, Row]) -> str:
    """Returns the results as Markdown."""
    passed = sum(row["passed"] for row in rows.values())
    minutes = sum(row["seconds"] for row in rows.values()) / 60
    lines = [
        "# Outcomes of faults in fine-tuning runs",
        "",
        f"Written by `python -m tests.faults` with jax {jax.__version__} on "
        f"{platform.system()}, CPU. {passed} of {len(rows)} cases had the promised "
        f"outcome. They took {minutes:.0f} minutes, in one run or several, since "
        "`--only` repeats some of them. A fine-tuning run has four steps unless "
        "another number is given. Bit for bit means that `params_checksum` equals "
        "that of an unbroken run.",
        "",
        "| fault | promised | what happened | lost | passed |",
        "|---|---|---|---|---|",
    ]
    for fault, row in rows.items():
        texts = [fault, *(row[key] for key in ("promised", "happened", "lost"))]
        texts.append("yes" if row["passed"] else "**no**")
        cells = (text.replace("|", "\\|").replace("\n", " ") for text in texts)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(options: Options) -> bool:
    """Injects the faults, and returns whether all had the promised outcome."""
    wanted = options.only or ("",)
    chosen = [case for case in CASES if any(word in case.fault for word in wanted)]
    kept = read_json(options.output) or {}
    with tempfile.TemporaryDirectory() as folder:
        # Some cases run as another user, who needs access.
        pathlib.Path(folder).chmod(0o755)
        lab = Lab(pathlib.Path(folder))
        for case in tqdm.tqdm(chosen, unit="case"):
            kept[case.fault] = attempt(case, lab)
            rows = {c.fault: kept[c.fault] for c in CASES if c.fault in kept}
            write_json(options.output, rows)
            write_text(options.output.with_suffix(".md"), table(rows))
    return all(kept[case.fault]["passed"] for case in chosen)


def main(arguments: list[str]) -> int:
    """Runs the command; returns 0 if all faults had the promised outcome, else 1."""
    good = []

    def work() -> None:
        options = config.fill(Options(), "python -m tests.faults", arguments)
        good.append(run(options))

    status = exit_status(work, "the results so far are kept.")
    return status or int(not good[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
