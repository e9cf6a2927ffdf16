"""Does every fault to a real run, and writes what became of it.

python -m tests.faults                   all of them
python -m tests.faults --only SIGKILL    those with such a word in their name, again

The table is tests/faults/results.md, its rows are in results.json beside it.
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
from tests.faults import directories, disks, inputs, processes
from tests.faults.lab import Case, Lab

CASES: list[Case] = [
    *processes.CASES,
    *directories.CASES,
    *disks.CASES,
    *inputs.CASES,
]
RESULTS = pathlib.Path(__file__).with_name("results.json")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Does faults to runs of examples.finetune and writes the table of them."""

    only: tuple[str, ...] = ()
    """Only faults with one of these in their names; the others' rows stay."""
    output: pathlib.Path = RESULTS
    """Where the rows are kept; the table is beside it."""


def attempt(case: Case, lab: Lab) -> Row:
    """Does one fault and says what became of it."""
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
    """The results as Markdown."""
    passed = sum(row["passed"] for row in rows.values())
    minutes = sum(row["seconds"] for row in rows.values()) / 60
    lines = [
        "# What becomes of a fine-tuning run when things go wrong",
        "",
        f"Written by `python -m tests.faults` with jax {jax.__version__} on "
        f"{platform.system()}, CPU. {passed} of {len(rows)} cases came out as "
        f"promised; they took {minutes:.0f} minutes, in one run or several (`--only` "
        "does some again and leaves the other rows). A fine-tuning run has four steps "
        "unless another number is given; bit for bit means an unbroken run's "
        "`params_sha256`.",
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
    """Does the faults, and returns whether all came out as promised."""
    wanted = options.only or ("",)
    chosen = [case for case in CASES if any(word in case.fault for word in wanted)]
    kept = read_json(options.output) or {}
    with tempfile.TemporaryDirectory() as folder:
        # Some cases run as another user, who must be able to come here.
        pathlib.Path(folder).chmod(0o755)
        lab = Lab(pathlib.Path(folder))
        for case in tqdm.tqdm(chosen, unit="case"):
            kept[case.fault] = attempt(case, lab)
            rows = {c.fault: kept[c.fault] for c in CASES if c.fault in kept}
            write_json(options.output, rows)
            write_text(options.output.with_suffix(".md"), table(rows))
    return all(kept[case.fault]["passed"] for case in chosen)


def main(arguments: list[str]) -> int:
    """Runs the command; its status is 0 where all came out as promised, else 1."""
    good = []

    def work() -> None:
        options = config.fill(Options(), "python -m tests.faults", arguments)
        good.append(run(options))

    status = exit_status(work, "what was done so far is kept.")
    return status or int(not good[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
