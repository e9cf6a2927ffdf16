"""The options of the program, in the groups in which `--help` shows them.

Each class is a group, its docstring the heading, and comments are the descriptions.
`config.Config` has the fields of all of them.
"""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

# The default run is sized for 15 minutes on two CPU cores; these are the numbers to
# retune together.
OPTIMIZERS = ("adamw", "mofo")
# Each optimizer's best of the sweep that examples/finetune/README.md records.
LEARNING_RATES = {"adamw": 2e-4, "mofo": 2e-4}
OTHER_LEARNING_RATE = 1e-4
STEPS = 60
BATCH_SIZE = 4
SEQUENCE_LENGTH = 120  # The longest generated row has 114 tokens.
WARMUP_STEPS = 5
CHECKPOINT_EVERY = 30
TRAINING_ROWS = 512
EVALUATION_ROWS = 64
KNOWLEDGE_QUESTIONS = 200
RETENTION_SEQUENCES = 32
MAX_NEW_TOKENS = 64

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class First:
    """The options that matter first."""

    # Run directory. A directory of other settings is refused.
    output: pathlib.Path = pathlib.Path("runs/finetune")
    # smollm2-135m-instruct, a directory in Hugging Face layout, or a Hugging Face
    # repository id.
    model: str = "smollm2-135m-instruct"
    # JSONL to learn from: messages, prompt/completion, question/answer or text rows.
    # Without it, the generated --task.
    train_file: pathlib.Path | None = None
    # JSONL that measures what was learned. Required with --train-file.
    task_eval_file: pathlib.Path | None = None
    # Optimizers to compare, one arm each. NAME+replay is an arm with --replay.
    optimizer: tuple[str, ...] = OPTIMIZERS
    # Peak learning rates: a number for all optimizers, NAME=RATE for one, or both. An
    # optimizer with several rates has an arm for each, called NAME@RATE. Without it,
    # what was best on the default task, or 1e-4.
    learning_rate: tuple[str, ...] = ()
    # Optimizer steps of an arm.
    steps: int = STEPS
    # Train LoRA factors of this rank beside every kernel of the layers, with all else
    # frozen, and merge them at the end; 0 trains the parameters themselves.
    lora: int = 0
    # Texts that the base model writes once, on which every step keeps the model close
    # to the base model's predictions; 0 for none. If arms are named NAME+replay, in
    # these alone.
    replay: int = 0
    # Write each arm's final model to DIR/ARM in Hugging Face layout.
    export: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned, and what is measured."""

    # Where the other options take their defaults from; smoke is the shortest run that
    # exercises everything.
    preset: Literal["default", "smoke"] = "default"
    # The generated task that is learned without --train-file: sentences to be written
    # as JSON, or school mathematics.
    task: Literal["json", "mathematics"] = "json"
    # NAME=PATH: JSONL that measures what was forgotten, beside the knowledge questions,
    # prose and code that are always measured. May be repeated.
    retention_file: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    # Rows to generate when there is no --train-file.
    training_rows: int = TRAINING_ROWS
    # Most held-out rows of the task to evaluate on (loss and exact match).
    evaluation_rows: int = EVALUATION_ROWS
    # Most general-knowledge questions to score.
    knowledge_questions: int = KNOWLEDGE_QUESTIONS
    # Most sequences to evaluate of each retention text.
    retention_sequences: int = RETENTION_SEQUENCES
    # Longest decoded answer; 0 leaves out decoding and exact match.
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclasses.dataclass(frozen=True)
class Optimizing:
    """The optimizers."""

    # Share of each tensor's coordinates that MoFO moves in a step, in (0, 1].
    update_fraction: float = 0.15
    # Factor on the steps of coordinates that MoFO does not select, in [0, 1).
    unselected_scale: float = 0.0
    # Learning rate after the warm-up; cosine falls to zero.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Steps in which the learning rate rises linearly to its peak.
    warmup_steps: int = WARMUP_STEPS
    # Decay of the first moment, in [0, 1).
    b1: float = 0.9
    # Decay of the second moment, in [0, 1).
    b2: float = 0.999
    # Added to the root of the second moment.
    eps: float = 1e-8
    # Decoupled weight decay.
    weight_decay: float = 0.0
    # Gradients with a larger global norm are scaled down to it; 0 turns it off.
    clip_norm: float = 1.0
    # LoRA's factors are scaled by this over their rank; by 1 if it is not given.
    lora_alpha: float | None = None
    # Strength of the pull to the base model, for l2, l1, ewc and projection.
    strength: float = 0.1
    # Exponent of the second moment, for padam, mofo_padam and mofo_gain, in [0, 1];
    # Adam's is 0.5.
    exponent: float = 0.75
    # Added to the Fisher information, for natural_gradient and mofo_fisher.
    damping: float = 1e-6
    # Damping of the covariances, for inverse_covariance and mofo_inverse_covariance;
    # the smaller, the more is spared.
    covariance_damping: float = 0.1
    # What is done to the trained parameters before they are measured: interpolate them
    # with the base model's (WiSE-FT), or undo all but the largest changes (FAPM).
    after: Literal["nothing", "interpolate", "prune"] = "nothing"
    # For --after: the weight of the trained parameters, or the share of the changes
    # that is kept, in (0, 1].
    after_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class OwnText:
    """Texts that the base model writes itself."""

    # Weight of the divergence from the base model on --replay texts, beside the task's
    # loss.
    replay_weight: float = 1.0
    # Such texts in one forward and backward pass, beside --batch-size; 0 is half of it.
    replay_batch_size: int = 0
    # Texts on which the Fisher information, or the covariances of the kernels' inputs,
    # are estimated for the optimizers that use them.
    own_texts: int = 64


@dataclasses.dataclass(frozen=True)
class Training:
    """Steps, batches and checkpoints."""

    # Sequences in one forward and backward pass.
    batch_size: int = BATCH_SIZE
    # Passes whose gradients are summed into one optimizer step.
    accumulation_steps: int = 1
    # Tokens in a sequence; longer examples are left out, longer texts are cut.
    sequence_length: int = SEQUENCE_LENGTH
    # Put several short examples into one sequence (they do not see each other).
    pack: bool = True
    # Decides the generated rows, the order of the examples, and what is random.
    seed: int = 0
    # Steps between checkpoints; the last step is always saved.
    checkpoint_every: int = CHECKPOINT_EVERY
    # Steps between lines of metrics.jsonl.
    log_every: int = 1
    # Most steps in a row that are skipped because their gradients are not finite.
    max_skipped_steps: int = 3


@dataclasses.dataclass(frozen=True)
class Devices:
    """Precision, memory and devices."""

    # Precision of the forward and backward pass.
    compute_dtype: Precision = "float32"
    # Precision of the parameters.
    param_dtype: Precision = "float32"
    # Keep what bfloat16 parameters cannot hold of their steps in the optimizer's state,
    # in float32. auto: where the parameters are bfloat16.
    master_weights: Literal["auto", "on", "off"] = "auto"
    # Stack the layers and compile only one of them, which is much faster; a stacked
    # tensor gets one MoFO block a layer, as if it were not stacked.
    scan_layers: bool = True
    # Recompute activations in the backward pass to save memory.
    remat: bool = False
    # Device mesh as AXIS=SIZE,...; axes data, fsdp, tensor. For example
    # fsdp=4,tensor=2. Without it, data parallel over all devices.
    mesh: str = ""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Runs of several processes."""

    # HOST:PORT of process 0: every host starts the same command, with its own
    # --process-id, and reads and writes the same directories.
    coordinator: str | None = None
    # How many processes there are.
    num_processes: int | None = None
    # Which of them this is, counted from 0.
    process_id: int | None = None
    # Let JAX find the three above in SLURM, Open MPI, Kubernetes or Cloud TPU.
    distributed: bool = False


GROUPS = (First, Task, Optimizing, OwnText, Training, Devices, Processes)
