"""The options of an evaluation, a frozen dataclass filled from the command line."""

import dataclasses
import pathlib
from collections.abc import Sequence

from examples.finetune.command import config
from examples.finetune.command.errors import InputError
from examples.finetune.command.options import Precision
from examples.finetune.model.packaged import DEFAULT_MODEL

PROGRAM = "python -m examples.evaluation"
SMALLEST = {"batch_size": 1, "limit": 1, "num_fewshot": 0, "bootstrap_iters": 0}


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate a language model with lm-evaluation-harness.

    The output directory receives results.json and, for every task, the model's prompts
    and answers.
    """

    output: pathlib.Path = pathlib.Path("runs/evaluation")
    """Output directory; the results of an earlier evaluation are replaced."""
    model: str = DEFAULT_MODEL
    """Model, as for examples.finetune: smollm2-135m-instruct, gemma3-270m, a
    directory in Hugging Face layout, such as an exported model, or a Hugging Face
    repository id."""
    tasks: tuple[str, ...] = ("general_knowledge", "word_problems")
    """Names of tasks: those of this example, of --include-path or, with network access,
    of the harness itself."""
    include_path: pathlib.Path | None = None
    """Directory of additional tasks, in the harness's YAML format."""
    limit: int | None = None
    """Evaluate only this many items of each task, for trials."""
    num_fewshot: int | None = None
    """Number of solved examples before each item; the task's own number by default."""
    apply_chat_template: bool = False
    """Format prompts with the model's chat template."""

    batch_size: int = 8
    """Rows per batch."""
    max_length: int | None = None
    """Most tokens to predict from; the model's whole context by default."""
    compute_dtype: Precision = "float32"
    """Dtype of the computation."""
    param_dtype: Precision = "float32"
    """Dtype of the parameters."""
    mesh: str = ""
    """Device mesh as AXIS=SIZE,... with axes data, fsdp, tensor; data parallel over all
    devices by default."""
    bootstrap_iters: int = 1000
    """Number of resamplings for the standard errors of metrics without a formula; 0
    omits all standard errors."""


def parse(arguments: Sequence[str]) -> Options:
    """Fills Options from the command line.

    Args:
      arguments: the words after the program's name.

    Raises:
      InputError: a value is not allowed.
      SystemExit: as for `config.fill`.
    """
    options = config.fill(Options(), PROGRAM, arguments)
    for field, smallest in SMALLEST.items():
        value = getattr(options, field)
        if value is not None and value < smallest:
            raise InputError(
                f"{config.option(field)} must be >= {smallest}, got {value}"
            )
    # The harness's own command separates tasks by commas.
    names = [name for entry in options.tasks for name in entry.split(",") if name]
    if not names:
        raise InputError("--tasks needs at least one name")
    if options.include_path is not None and not options.include_path.is_dir():
        raise InputError(
            f"--include-path must be a directory, got {options.include_path}"
        )
    return dataclasses.replace(options, tasks=tuple(dict.fromkeys(names)))
