"""Faults of runs with replay, and of runs of a Gemma 3 model."""

import pathlib

from examples.finetune.running.known import HIDDEN
from examples.finetune.training.own_text import FILE
from tests.faults import directories, processes
from tests.faults.damage import cut, flip
from tests.faults.directories import harmless, mended, remove
from tests.faults.lab import Case, Kind, Lab
from tests.finetune import families, logits

# Cases of every kind: an unexpected end, an expected one, and a damaged checkpoint.
_EVERY = (
    "SIGTERM while it trains, no checkpoint due",
    "SIGKILL while it trains",
    "newest checkpoint: one bit of the parameters flipped",
)


def _write_gemma(directory: pathlib.Path) -> None:
    shapes = logits.load()["families"]["gemma3"]["shapes"]
    # A context that holds a problem byte by byte.
    changes = {"max_position_embeddings": 512}
    families.write_model(directory, "gemma3", shapes, **changes)


REPLAY = Kind("replay", options=("--replay", "4"))
GEMMA = Kind("Gemma 3", _write_gemma)


def _of(kind: Kind, case: Case) -> Case:
    """Returns a case with another kind of run."""
    return Case(
        f"{kind.name}: {case.fault}",
        case.promise,
        lambda lab: case.work(lab.of(kind)),
    )


def _writing_texts(lab: Lab, run: pathlib.Path) -> bool:
    """Returns whether the base model generates the texts for replay."""
    return (run / "base.json").exists() and not (run / FILE).exists()


_ALL = [*processes.CASES, *directories.CASES]
CASES = [
    *(
        _of(kind, case)
        for kind in (REPLAY, GEMMA)
        for case in _ALL
        if case.fault in _EVERY
    ),
    *(
        _of(REPLAY, case)
        for case in [
            Case(
                "SIGKILL while its texts are generated",
                processes.GOES_ON,
                lambda lab: processes.killed(lab, _writing_texts),
            ),
            mended(
                "texts truncated",
                lambda run: cut(run / FILE),
                f"{FILE} is damaged",
                remove(FILE),
            ),
            mended(
                "one bit of the texts' hidden states flipped",
                lambda run: flip(run / HIDDEN),
                f"{HIDDEN} is damaged",
                remove(HIDDEN),
            ),
            harmless("texts deleted", remove(FILE)),
            harmless("the texts' hidden states deleted", remove(HIDDEN)),
        ]
    ),
]
