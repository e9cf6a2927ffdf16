"""What a run does: one frozen dataclass, its presets, and how the command fills it."""

import argparse
import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from examples.finetune.command.errors import InputError

PROGRAM = "python -m examples.finetune"

# The default run is sized for 15 minutes on two CPU cores; these are the numbers to
# retune together. LEARNING_RATE is AdamW's best by held-out task loss at this budget.
STEPS = 60
BATCH_SIZE = 4
SEQUENCE_LENGTH = 120  # The longest generated row has 114 tokens.
LEARNING_RATE = "2e-4"
WARMUP_STEPS = 5
CHECKPOINT_EVERY = 30
TRAINING_ROWS = 512
EVALUATION_ROWS = 64
KNOWLEDGE_QUESTIONS = 200
RETENTION_SEQUENCES = 32
MAX_NEW_TOKENS = 64

Precision = Literal["float32", "bfloat16"]
Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune one language model with several optimizers and see what each forgot.

    Every arm starts from the same weights and sees the same batches; an arm is one
    optimizer. The run directory receives report.md, summary.json, metrics.jsonl,
    pictures and checkpoints. The same command started again goes on where it was, also
    after SIGTERM or Ctrl-C (it saves after the step, and ends with status 143 or 130),
    a crash or a full disk. Status 2: a sentence says what must be mended first.
    """

    output: pathlib.Path = pathlib.Path("runs/finetune")
    """Run directory. A directory of other settings is refused."""
    preset: Literal["default", "smoke"] = "default"
    """Where the other options take their defaults from; smoke is the shortest run
    that exercises everything."""

    model: str = "smollm2-135m-instruct"
    """smollm2-135m-instruct, a directory in Hugging Face layout with a Llama-style
    model, or a Hugging Face repository id."""
    task: Literal["json", "mathematics"] = "json"
    """The generated task that is learned without --train-file: sentences to be written
    as JSON, or school mathematics."""
    train_file: pathlib.Path | None = None
    """JSONL to learn from: messages, prompt/completion, question/answer or text rows.
    Without it, the generated --task."""
    task_eval_file: pathlib.Path | None = None
    """JSONL that measures what was learned. Required with --train-file."""
    retention_file: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=PATH: JSONL that measures what was forgotten, beside the knowledge
    questions, prose and code that are always measured. May be repeated."""

    optimizer: tuple[str, ...] = ("adamw", "mofo")
    """Optimizers to compare, one arm each."""
    learning_rate: tuple[str, ...] = (LEARNING_RATE,)
    """Peak learning rate: a number for all arms, NAME=RATE for one, or both."""
    update_fraction: float = 0.15
    """Share of each tensor's coordinates that MoFO moves in a step, in (0, 1]."""
    lora: int = 0
    """Train LoRA factors of this rank beside every kernel of the layers, with all else
    frozen, and merge them at the end; 0 trains the parameters themselves."""
    lora_alpha: float | None = None
    """LoRA's factors are scaled by this over their rank; by 1 if it is not given."""
    unselected_scale: float = 0.0
    """Factor on the steps of coordinates that MoFO does not select, in [0, 1)."""
    exponent: float = 0.75
    """Of the second moment, for padam, mofo_padam and mofo_gain, in [0, 1]; Adam's
    is 0.5."""
    strength: float = 0.1
    """Of the pull to the start, for l2, l1, ewc and projection."""
    damping: float = 1e-6
    """Added to the Fisher information, for natural_gradient and mofo_fisher."""
    fisher_sequences: int = 16
    """Sequences that the base model writes for its Fisher information, for
    natural_gradient, mofo_fisher and ewc."""
    after: Literal["nothing", "interpolate", "prune"] = "nothing"
    """What is done to the trained parameters before they are measured: interpolate
    them with the start (WiSE-FT), or undo all but the most important changes (FAPM)."""
    after_share: float = 0.5
    """For --after: the share of the way that is gone, or of the changes that stay, in
    (0, 1]."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine falls to zero."""
    warmup_steps: int = WARMUP_STEPS
    """Steps in which the learning rate rises linearly to its peak."""
    b1: float = 0.9
    """Decay of the first moment, in [0, 1)."""
    b2: float = 0.999
    """Decay of the second moment, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it; 0 turns it off."""

    steps: int = STEPS
    """Optimizer steps of an arm."""
    batch_size: int = BATCH_SIZE
    """Sequences in one forward and backward pass."""
    accumulation_steps: int = 1
    """Passes whose gradients are summed into one optimizer step."""
    sequence_length: int = SEQUENCE_LENGTH
    """Tokens in a sequence; longer examples are left out, longer texts are cut."""
    pack: bool = True
    """Put several short examples into one sequence (they do not see each other)."""
    seed: int = 0
    """Decides the generated rows and the order of the examples."""

    compute_dtype: Precision = "float32"
    """Precision of the forward and backward pass."""
    param_dtype: Precision = "float32"
    """Precision of the parameters and of the optimizer's state."""
    scan_layers: bool = True
    """Stack the layers and compile only one of them, which is much faster; a stacked
    tensor gets one MoFO block a layer, as if it were not stacked."""
    remat: bool = False
    """Recompute activations in the backward pass to save memory."""
    mesh: str = ""
    """Device mesh as AXIS=SIZE,...; axes data, fsdp, tensor. For example
    fsdp=4,tensor=2. Without it, data parallel over all devices."""

    coordinator: str | None = None
    """HOST:PORT of process 0, for a run of several processes: every host starts the
    same command, with its own --process-id, and reads and writes the same
    directories."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, counted from 0."""
    distributed: bool = False
    """Let JAX find the three above in SLURM, Open MPI, Kubernetes or Cloud TPU."""

    checkpoint_every: int = CHECKPOINT_EVERY
    """Steps between checkpoints; the last step is always saved."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    max_skipped_steps: int = 3
    """Most steps in a row that are skipped, for gradients that are not finite."""
    export: pathlib.Path | None = None
    """Write each arm's final model to DIR/ARM in Hugging Face layout."""

    training_rows: int = TRAINING_ROWS
    """Rows to generate when there is no --train-file."""
    evaluation_rows: int = EVALUATION_ROWS
    """Most held-out rows of the task to evaluate on (loss and exact match)."""
    knowledge_questions: int = KNOWLEDGE_QUESTIONS
    """Most general-knowledge questions to score."""
    retention_sequences: int = RETENTION_SEQUENCES
    """Most sequences to evaluate of each retention text."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Longest decoded answer; 0 leaves out decoding and exact match."""


PRESETS: Mapping[str, Config] = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        steps=2,
        warmup_steps=1,
        checkpoint_every=1,
        training_rows=64,
        evaluation_rows=8,
        knowledge_questions=16,
        retention_sequences=8,
        max_new_tokens=24,
    ),
}

# These say where a run lives, how long it keeps things and on what it is computed,
# not what it computes; a run may go on with others. Arms are compared one by one.
FREE_SETTINGS = {
    *("output", "preset", "optimizer", "learning_rate", "mesh"),
    *("coordinator", "num_processes", "process_id", "distributed"),
    *("checkpoint_every", "log_every", "max_skipped_steps", "export"),
}


def parse(arguments: Sequence[str]) -> Config:
    """Fills a Config from the command line, over the preset that it names.

    Args:
      arguments: the words after the program's name.

    Returns:
      The configuration; only the types of its values have been checked.

    Raises:
      InputError: an unknown option or a value of the wrong type.
      SystemExit: with status 0, after `--help`.
    """
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--preset", nargs="?")
    preset = first_look.parse_known_args(arguments)[0].preset
    return fill(PRESETS.get(preset, Config()), PROGRAM, arguments)


def fill(default: Options, program: str, arguments: Sequence[str]) -> Options:
    """Fills a frozen dataclass of options from a command line.

    Args:
      default: what holds where nothing else is said.
      program: how the command is started.
      arguments: the words after that.

    Returns:
      Another of the same class; only the types of its values have been checked.

    Raises:
      InputError: an unknown option or a value of the wrong type.
      SystemExit: with status 0, after `--help`.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                prog=program,
                args=arguments,
                default=default,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise InputError(_sentence(complaint.getvalue())) from None


def _sentence(complaint: str) -> str:
    """tyro's boxed complaint as one line: its first paragraph, without the frame."""
    words = []
    for line in complaint.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─|+- \t") if "──" in line else line.strip("│| \t")
        if not text:
            break
        words.append(text)
    sentence = " ".join(words) or complaint.strip()
    return f"{sentence} (--help lists the options)"


def learning_rates(config: Config) -> dict[str, float]:
    """The peak learning rate of every arm.

    Raises:
      InputError: an entry is no number, names no arm, or an arm has no rate.
    """
    common, own = None, {}
    for entry in config.learning_rate:
        name, _, text = entry.rpartition("=")
        try:
            rate = float(text)
        except ValueError:
            raise InputError(
                f"--learning-rate must be a number or NAME=NUMBER, got {entry!r}"
            ) from None
        if not 0 < rate < float("inf"):
            raise InputError(f"--learning-rate must be positive, got {entry!r}")
        if name and name not in config.optimizer:
            raise InputError(
                f"--learning-rate names {name!r}, which is not among the optimizers "
                f"of this run ({', '.join(config.optimizer)})"
            )
        if name:
            own[name] = rate
        else:
            common = rate
    rates = {name: own.get(name, common) for name in config.optimizer}
    missing = [name for name, rate in rates.items() if rate is None]
    if missing:
        raise InputError(f"--learning-rate gives no rate for {', '.join(missing)}")
    return {name: rate for name, rate in rates.items() if rate is not None}


def to_json(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values (paths as text, tuples as lists)."""
    values = dataclasses.asdict(config)
    return {
        name: str(value)
        if isinstance(value, pathlib.Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }


def option(field: str) -> str:
    """The command-line spelling of a field."""
    return "--" + field.replace("_", "-")
