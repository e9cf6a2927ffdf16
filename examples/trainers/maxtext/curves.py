"""Draws the losses of MaxText runs from the metrics that MaxText writes.

    python -m examples.trainers.maxtext.curves adamw.jsonl mofo.jsonl --output a.png

Each file is the `metrics_file` of a run, and its name labels the run's line.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

from matplotlib import pyplot


def losses(path: pathlib.Path) -> dict[int, float]:
    """Returns the loss of each step of a run, of repeated steps the last.

    Rows of evaluations, which MaxText writes to the same file, have no such loss.
    """
    rows = map(json.loads, path.read_text().splitlines())
    return {
        int(row["step"]): row["learning/loss"] for row in rows if "learning/loss" in row
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", nargs="+", type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    given = parser.parse_args(arguments)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for path in given.metrics:
        found = losses(path)
        axes.plot(list(found), list(found.values()), label=path.stem)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend()
    figure.savefig(given.output, dpi=120)


if __name__ == "__main__":
    main()
