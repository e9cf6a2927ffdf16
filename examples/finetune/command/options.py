"""The options of the program, in the groups of `--help`.

Each class is a group with its docstring as the heading, and comments are descriptions.
`config.Config` has the fields of all groups.
"""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

# The default run takes 10 minutes on two CPU cores. These numbers determine its size
# and should be tuned together.
OPTIMIZERS = ("adamw", "mofo", "inverse_covariance")
# The rate of each optimizer with the lowest task loss in the sweep that
# examples/finetune/README.md records.
LEARNING_RATES = {"adamw": 1e-4, "mofo": 2e-4, "inverse_covariance": 4e-4}
OTHER_LEARNING_RATE = 1e-4
# Times the sum of the learning rates, this is between 1 and 5 in the default run.
STRENGTHS = {"l2": 1000.0, "l2_inverse_covariance": 1000.0}
OTHER_STRENGTH = 0.1
STEPS = 30
BATCH_SIZE = 4
SEQUENCE_LENGTH = 96  # The longest row of the task json has 95 tokens.
WARMUP_STEPS = 3
CHECKPOINT_EVERY = 15
TRAINING_ROWS = 512
EVALUATION_ROWS = 64
KNOWLEDGE_QUESTIONS = 64
RETENTION_SEQUENCES = 16
MAX_NEW_TOKENS = 64

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class First:
    """The most important options."""

    # Run directory. It must not belong to a run with other settings.
    output: pathlib.Path = pathlib.Path("runs/finetune")
    # smollm2-135m-instruct, gemma3-270m, a directory in Hugging Face layout, or a
    # Hugging Face repository id.
    model: str = "smollm2-135m-instruct"
    # JSONL for training: messages, prompt/completion, question/answer or text rows.
    # Without it, the generated --task.
    train_file: pathlib.Path | None = None
    # JSONL for measuring what was learned. Required with --train-file.
    task_eval_file: pathlib.Path | None = None
    # Optimizers to compare, one arm each. NAME+replay is an arm with --replay.
    optimizer: tuple[str, ...] = OPTIMIZERS
    # Peak learning rates: a number for all optimizers, NAME=RATE for one, or both. An
    # optimizer with several rates has an arm for each, called NAME@RATE; one that was
    # trained as NAME before is trained again. By default, the best rate on the default
    # task, or 1e-4.
    learning_rate: tuple[str, ...] = ()
    # Optimizer steps of each arm.
    steps: int = STEPS
    # Train LoRA factors of this rank for every kernel of the layers, with everything
    # else frozen, and merge them at the end; 0 trains the parameters themselves.
    lora: int = 0
    # Number of texts that the base model generates once, on which every step keeps the
    # model close to the base model's predictions. If arms are named NAME+replay, only
    # these use the texts.
    replay: int = 0
    # Write each arm's final model to DIR/ARM in Hugging Face layout.
    export: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned and measured."""

    # Preset for the other options' defaults; smoke is the shortest run that uses all of
    # the program.
    preset: Literal["default", "smoke"] = "default"
    # Generated task without --train-file: rewriting sentences as JSON, or school
    # mathematics.
    task: Literal["json", "mathematics"] = "json"
    # NAME=PATH: JSONL for measuring what was forgotten, in addition to the knowledge
    # questions, prose and code that are always measured. May be repeated.
    retention_file: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    # Number of rows to generate without --train-file.
    training_rows: int = TRAINING_ROWS
    # Most held-out rows of the task to evaluate (loss and exact match).
    evaluation_rows: int = EVALUATION_ROWS
    # Most general-knowledge questions to score.
    knowledge_questions: int = KNOWLEDGE_QUESTIONS
    # Most sequences to evaluate for each retention text.
    retention_sequences: int = RETENTION_SEQUENCES
    # Length of the longest decoded answer; 0 omits decoding and exact match.
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclasses.dataclass(frozen=True)
class Optimizing:
    """The optimizers."""

    # Share of each tensor's coordinates that MoFO updates in a step, in (0, 1].
    update_fraction: float = 0.15
    # Factor on the steps of coordinates that MoFO does not select, in [0, 1).
    unselected_scale: float = 0.0
    # Learning rate after the warm-up; cosine falls to zero.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Steps during which the learning rate rises linearly to its peak.
    warmup_steps: int = WARMUP_STEPS
    # Decay of the first moment, in [0, 1). Lion always has 0.9.
    b1: float = 0.9
    # Decay of the second moment, in [0, 1). Lion's other decay is always 0.99.
    b2: float = 0.999
    # Added to the root of the second moment.
    eps: float = 1e-8
    # Decoupled weight decay.
    weight_decay: float = 0.0
    # Gradients with a larger global norm are scaled down to it; 0 disables this.
    clip_norm: float = 1.0
    # LoRA factors are scaled by this over their rank; by 1 by default.
    lora_alpha: float | None = None
    # Strength of the pull to the base model, for l2, l1, l2_inverse_covariance, ewc and
    # projection. By default, 1000 for the two with l2, which suits the default run, and
    # 0.1 for the others.
    strength: float | None = None
    # Exponent of the second moment, for padam, mofo_padam and mofo_gain, in [0, 1];
    # Adam's is 0.5.
    exponent: float = 0.75
    # Added to the Fisher information, for natural_gradient and mofo_fisher.
    damping: float = 1e-6
    # Damping of the covariances, for optimizers with inverse_covariance in their names;
    # smaller values shrink steps along common inputs more, and need higher rates.
    covariance_damping: float = 0.3
    # Dtype of the covariances. For large models, see also the next two options.
    covariance_dtype: Precision = "float32"
    # Use only diagonal blocks of the covariances of at most this length.
    covariance_block_size: int | None = None
    # Use only this many of the largest directions of each covariance, or block, and the
    # diagonal.
    covariance_rank: int | None = None
    # Change of the trained parameters before they are measured: interpolate them with
    # the base model's (WiSE-FT), or undo all but the largest changes (FAPM).
    after: Literal["nothing", "interpolate", "prune"] = "nothing"
    # For --after: the weight of the trained parameters, or the share of the changes
    # that is kept, in (0, 1].
    after_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class OwnText:
    """Texts that the base model generates."""

    # Weight of the divergence from the base model on --replay texts, relative to the
    # task's loss.
    replay_weight: float = 1.0
    # --replay texts per forward and backward pass; 0 for half of --batch-size.
    replay_batch_size: int = 0
    # Number of texts for estimating the Fisher information, or the covariances of the
    # kernels' inputs, for the optimizers that use them.
    own_texts: int = 64


@dataclasses.dataclass(frozen=True)
class Training:
    """Steps, batches and checkpoints."""

    # Sequences per forward and backward pass.
    batch_size: int = BATCH_SIZE
    # Passes whose gradients are summed for one optimizer step.
    accumulation_steps: int = 1
    # Tokens per sequence; longer examples are omitted, longer texts are cut.
    sequence_length: int = SEQUENCE_LENGTH
    # Pack several short examples into one sequence, without attention between them.
    pack: bool = True
    # Seed of the generated rows, the order of the examples, and everything random.
    seed: int = 0
    # Steps between checkpoints; the last step is always saved.
    checkpoint_every: int = CHECKPOINT_EVERY
    # Steps between lines of metrics.jsonl.
    log_every: int = 1
    # Most consecutive steps that are skipped because their gradients are not finite.
    max_skipped_steps: int = 3


@dataclasses.dataclass(frozen=True)
class Devices:
    """Precision, memory and devices."""

    # Dtype of the forward and backward pass.
    compute_dtype: Precision = "float32"
    # Dtype of the parameters.
    param_dtype: Precision = "float32"
    # Keep what bfloat16 parameters cannot represent of their steps in the optimizer's
    # state, in float32. auto: if the parameters are bfloat16.
    master_weights: Literal["auto", "on", "off"] = "auto"
    # Stack the layers and compile only one of them, which is much faster; each layer of
    # a stacked tensor is one block of MoFO, as without stacking.
    scan_layers: bool = True
    # Recompute activations in the backward pass to save memory.
    remat: bool = False
    # Device mesh as AXIS=SIZE,... with axes data, fsdp, tensor, such as
    # fsdp=4,tensor=2. By default, data parallelism over all devices.
    mesh: str = ""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Runs of several processes."""

    # HOST:PORT of process 0. Every host starts the same command with its own
    # --process-id, and uses the same directories.
    coordinator: str | None = None
    # Number of processes.
    num_processes: int | None = None
    # Number of this process, counted from 0.
    process_id: int | None = None
    # Let JAX find these three values in SLURM, Open MPI, Kubernetes or Cloud TPU.
    distributed: bool = False


GROUPS = (First, Task, Optimizing, OwnText, Training, Devices, Processes)
