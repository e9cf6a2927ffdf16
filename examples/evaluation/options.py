"""What an evaluation does: one frozen dataclass, filled by the command line."""

import dataclasses
import pathlib
from collections.abc import Sequence

from examples.finetune.command import config
from examples.finetune.command.config import Precision
from examples.finetune.command.errors import InputError
from examples.finetune.model.default_model import DEFAULT_MODEL

PROGRAM = "python -m examples.evaluation"
SMALLEST = {"batch_size": 1, "limit": 1, "num_fewshot": 0, "bootstrap_iters": 0}


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate a language model with lm-evaluation-harness.

    The directory of the results receives results.json and, for every task, what the
    model was asked and answered.
    """

    output: pathlib.Path = pathlib.Path("runs/evaluation")
    """Directory of the results; those of an earlier evaluation are replaced."""
    model: str = DEFAULT_MODEL
    """As for examples.finetune: smollm2-135m-instruct, a directory in Hugging Face
    layout, such as an exported model of a run, or a Hugging Face repository id."""
    tasks: tuple[str, ...] = ("general_knowledge", "word_problems")
    """Names of tasks: those of this example, of --include-path or, where the network
    allows, of the harness itself."""
    include_path: pathlib.Path | None = None
    """Directory of further tasks, YAML files as the harness describes them."""
    limit: int | None = None
    """Most items of a task, from its beginning; for tries, not for figures."""
    num_fewshot: int | None = None
    """Solved examples before each item; what each task says by default."""
    apply_chat_template: bool = False
    """Ask in the model's chat template."""

    batch_size: int = 8
    """Rows at a time."""
    max_length: int | None = None
    """Most tokens to predict from; the model's whole context by default."""
    compute_dtype: Precision = "float32"
    """Precision of the computation."""
    param_dtype: Precision = "float32"
    """Precision of the parameters."""
    mesh: str = ""
    """Device mesh as AXIS=SIZE,...; axes data, fsdp, tensor. Without it, data parallel
    over all devices."""
    bootstrap_iters: int = 1000
    """Resamplings for the standard errors of metrics that have no formula for it; 0
    leaves out all standard errors."""


def parse(arguments: Sequence[str]) -> Options:
    """Fills Options from the command line.

    Args:
      arguments: the words after the program's name.

    Raises:
      InputError: an unknown option, or a value that is not allowed.
      SystemExit: with status 0, after `--help`.
    """
    options = config.fill(Options(), PROGRAM, arguments)
    for field, smallest in SMALLEST.items():
        value = getattr(options, field)
        if value is not None and value < smallest:
            raise InputError(
                f"{config.option(field)} must be >= {smallest}, got {value}"
            )
    # The harness's own command takes commas.
    names = [name for entry in options.tasks for name in entry.split(",") if name]
    if not names:
        raise InputError("--tasks needs at least one name")
    if options.include_path is not None and not options.include_path.is_dir():
        raise InputError(
            f"--include-path must be a directory, got {options.include_path}"
        )
    return dataclasses.replace(options, tasks=tuple(dict.fromkeys(names)))
