"""Checks and measures MoFO on one GPU or TPU host, in about six minutes.

Run it with `python -m examples.benchmarks.on_device`. It does the following, in order:

- measures the bandwidth of copying one large array;
- compares selections with NumPy's, in the form that the search takes on the platform;
- times steps of `optax.adamw`, `mofo` and the same filter with `lax.top_k`, and their
  compilation, for 0.1, 1.2 and as many billion coordinates as fit into memory;
- times training steps of SmolLM2-135M, and compares the coordinates that move with
  those that NumPy selects from the momenta;
- compares selections in the other forms of the search.

Training steps run on all devices, everything else on the first. The results go to the
JSON file that `examples.benchmarks.optimizer_step` writes too, and to a Markdown page
beside it; both are named after the device. The last line says whether all checks held,
and the exit status is 1 if one did not.
"""

import dataclasses
import functools
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import tyro

from examples.benchmarks import results
from examples.benchmarks.results import Entry, Found, Results, attempted
from examples.benchmarks.trees import (
    LLAMA_7B,
    SMOLLM2_135M,
    TREES,
    Tree,
    largest_scanned,
)
from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.command.status import exit_status
from examples.finetune.model.decoder_config import DecoderConfig

PROGRAM = "python -m examples.benchmarks.on_device"
RESULTS = pathlib.Path(__file__).parent / "results"
TRIALS = pathlib.Path("runs/on_device")
# The parameters, both moments and gradients take this many bytes per coordinate.
BYTES = 16
# The share of the free memory to fill, which leaves room for temporaries.
SHARE = 0.93


@dataclasses.dataclass(frozen=True)
class Options:
    """Checks and measures MoFO on one GPU or TPU host, in about six minutes."""

    output: pathlib.Path | None = None
    """Directory of the JSON file and the page; by default the results of this program
    or, in miniature, runs/on_device."""
    model: str = Config.model
    """Model of the training steps, as in examples.finetune. If the default model cannot
    be fetched, a model of the same size with random weights is used."""
    minutes: float = 6.0
    """Time limit. A measurement is left out if it would exceed the limit by taking as
    long as the longest one before it."""
    miniature: bool = False
    """Use tiny arrays and a tiny random model, to try the command on a CPU."""


class Sizes(NamedTuple):
    """The sizes of everything that is measured.

    Attributes:
      copied: bytes of the copied array.
      trees: trees of parameters to step, by name.
      llama: sizes of the model with random weights.
      tokens: tokens per row of a training step.
      training_steps: training steps of each optimizer.
      rounds: timed steps of each optimizer.
    """

    copied: int
    trees: Mapping[str, Tree]
    llama: DecoderConfig
    tokens: int
    training_steps: int
    rounds: int


FULL = Sizes(
    copied=2**30,
    trees={
        name: TREES[name] for name in ("smollm2-135m-scanned", "llama-1.2b-scanned")
    },
    llama=SMOLLM2_135M,
    tokens=128,
    training_steps=12,
    rounds=15,
)
MINIATURE = Sizes(
    copied=2**16,
    trees={"tiny": TREES["tiny"]},
    llama=dataclasses.replace(
        SMOLLM2_135M,
        vocab_size=64,
        hidden_size=24,
        intermediate_size=48,
        num_layers=2,
        num_heads=3,
        num_kv_heads=1,
        head_dim=8,
    ),
    tokens=8,
    training_steps=3,
    rounds=2,
)


class Case(NamedTuple):
    """A measurement, and the part and the name under which it is stored."""

    part: str
    name: str
    measure: Callable[[], Entry]


def cases(options: Options) -> Iterator[Case]:
    """Yields all measurements in order, the most informative first."""
    from examples.benchmarks import selections, timing

    sizes = MINIATURE if options.miniature else FULL
    tensors = selections.SMALL if options.miniature else selections.LARGE
    trials = functools.cache(lambda: [*selections.make_trials(tensors)])

    def form(name: str) -> Case:
        return Case(
            "selections", name, lambda: selections.measure(name, tensors, trials())
        )

    first, *others = selections.FORMS
    yield Case("bandwidth", "copy", lambda: timing.bandwidth(sizes.copied))
    yield form(first)
    for number, (name, tree) in enumerate(sizes.trees.items()):
        yield _steps(name, tree, sizes.rounds)
        if number == 0:
            yield Case("training", "step", lambda: training(options, sizes))
    if not options.miniature:
        yield _steps("as many as fit", None, sizes.rounds)
    for name in others:
        yield form(name)


def training(options: Options, sizes: Sizes) -> Entry:
    """Times training steps, and compares the first and the last with NumPy."""
    from examples.benchmarks import fine_tuning, selections, steps, timing

    try:
        if options.miniature:
            raise InputError("the command runs in miniature")
        problem = fine_tuning.pretrained_problem(options.model, sizes.tokens)
        reason = None
    except InputError as error:
        if options.model != Config.model:
            raise
        problem = fine_tuning.random_problem(sizes.llama, sizes.tokens)
        reason = str(error)
    last = sizes.training_steps
    compared = 0
    different: list[str] = []

    def look(number: int, mofo: fine_tuning.Arm) -> None:
        nonlocal compared
        if number not in (1, last):
            return
        momenta = mofo.momenta()
        axes = {name: (0,) if name.startswith("layers/") else () for name in momenta}
        compared += len(momenta)
        different.extend(
            f"step {number}, {name}"
            for name in selections.differences(
                mofo.selected(), momenta, axes, problem.config.update_fraction
            )
        )

    taken = fine_tuning.run(problem, last, look)
    counted = {name: times[fine_tuning.UNCOUNTED :] for name, times in taken.items()}
    entry = {
        "model": problem.name,
        "rows": problem.config.batch_size,
        "tokens": sizes.tokens,
        "selections": compared,
        "different": different,
        "arms": timing.rows(counted, steps.BASELINE),
        "first_step_seconds": {name: times[0] for name, times in taken.items()},
    }
    return entry | ({"instead": reason} if reason else {})


def _steps(name: str, tree: Tree | None, rounds: int) -> Case:
    """Returns the case of a tree, or of the largest one that fits if it is None."""

    def measure() -> Entry:
        from examples.benchmarks import steps
        from examples.benchmarks.programs import free_bytes

        chosen = tree
        if chosen is None:
            free = free_bytes()
            if free is None:
                return {"skipped": "the amount of free memory is unknown"}
            chosen = largest_scanned(LLAMA_7B, int(SHARE * free) // BYTES)
        settings = steps.Settings(
            rounds, seconds=5.0, slowest=3.0, arms=(steps.MOFO, "lax.top_k")
        )
        return steps.measure(name, chosen, "float32", settings)

    return Case("steps", f"{name}, float32", measure)


def measure(options: Options, put: Callable[[str, str, Entry], None]) -> list[Found]:
    """Measures one case after the other until the time is up.

    Args:
      options: the command's options.
      put: a function that stores an entry, given its part and case. It is called as
        soon as the case ends.

    Returns:
      The entries, in order.
    """
    start = time.monotonic()
    longest = 0.0
    found: list[Found] = []
    for part, name, case in cases(options):
        began = time.monotonic()
        if began - start + longest > 60 * options.minutes:
            entry: Entry = {
                "skipped": f"left out: the limit is {options.minutes:g} minutes"
            }
        else:
            try:
                entry = attempted(case)
            except Exception as error:
                # The machine may be borrowed, and the other cases are still of use.
                traceback.print_exc()
                reason = f"{type(error).__name__}: {results.first_line(error)}"
                entry = {"skipped": f"failed with {reason}"}
            longest = max(longest, time.monotonic() - began)
        put(part, name, entry)
        found.append(Found(part, name, entry))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, measures, stores and prints.

    Args:
      arguments: command-line arguments; those of the process if None.
    """
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    variables = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if not any(name in os.environ for name in variables):
        # JAX takes three quarters of a GPU's memory unless it is told otherwise.
        os.environ[variables[0]] = "0.95"
    held = True

    def work() -> None:
        nonlocal held
        held = _run(options)

    sys.exit(exit_status(work, "what was measured is stored.") or not held)


def _run(options: Options) -> bool:
    if not options.minutes > 0:
        raise InputError(f"--minutes must be above 0, got {options.minutes:g}")
    if options.model != Config.model:
        from examples.finetune.model.pretrained import open_model

        open_model(options.model)
    import jax

    from examples.benchmarks import device_page

    directory = options.output or (TRIALS if options.miniature else RESULTS)
    stored = Results(directory, jax.devices()[0].device_kind)
    found = measure(options, stored.put)
    held, sentence = device_page.verdict(found)
    page = device_page.write(stored.path.with_suffix(".md"), found, sentence)
    print(f"{page}\nResults: {stored.path}\n{sentence}")
    return held


if __name__ == "__main__":
    main()
