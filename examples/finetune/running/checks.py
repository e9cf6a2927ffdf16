"""Checks of the user's input before any long work begins."""

import math
import pathlib
import shutil
from collections.abc import Mapping

from examples.finetune.command.config import REPLAY, Config, arms, option
from examples.finetune.command.errors import InputError
from examples.finetune.command.optimizers import (
    FISHER,
    NEEDS,
    NOT_WITH_LORA,
    OPTIMIZERS,
)
from examples.finetune.data.tasks import TASKS
from examples.finetune.system.files import nearest_existing

# Names of measurements that always exist.
RESERVED = ("task", "knowledge", "prose", "code", "task_prompts")
# The smallest value of each whole number.
SMALLEST = {
    "steps": 1,
    "warmup_steps": 0,
    "batch_size": 1,
    "accumulation_steps": 1,
    "sequence_length": 2,
    "lora": 0,
    "replay": 0,
    "replay_batch_size": 0,
    "own_texts": 1,
    "seed": 0,
    "checkpoint_every": 1,
    "log_every": 1,
    "max_skipped_steps": 0,
    "training_rows": 1,
    "evaluation_rows": 1,
    "knowledge_questions": 1,
    "retention_sequences": 1,
    "max_new_tokens": 0,
}


def check_options(config: Config) -> None:
    """Checks everything that can be checked without files or devices.

    Raises:
      InputError: an option has an invalid value.
    """
    for field, smallest in SMALLEST.items():
        _require(config, field, getattr(config, field) >= smallest, f">= {smallest}")
    _require(config, "seed", config.seed < 2**32, "below 2**32")
    _require(config, "update_fraction", 0 < config.update_fraction <= 1, "in (0, 1]")
    for field in ("b1", "b2"):
        _require(config, field, 0 <= getattr(config, field) < 1, "in [0, 1)")
    _require(config, "eps", 0 < config.eps < math.inf, "positive")
    for field in ("weight_decay", "clip_norm", "replay_weight"):
        _require(config, field, 0 <= getattr(config, field) < math.inf, ">= 0")
    _require(
        config,
        "warmup_steps",
        config.warmup_steps < config.steps,
        f"below --steps, {config.steps}",
    )
    _require(config, "unselected_scale", 0 <= config.unselected_scale < 1, "in [0, 1)")
    _require(config, "exponent", 0 <= config.exponent <= 1, "in [0, 1]")
    strength = config.strength
    if strength is not None:
        _require(config, "strength", 0 <= strength < math.inf, ">= 0")
    for field in ("damping", "covariance_damping"):
        _require(config, field, 0 < getattr(config, field) < math.inf, "positive")
    for field in ("covariance_block_size", "covariance_rank"):
        value = getattr(config, field)
        _require(config, field, value is None or value >= 1, ">= 1")
    _require(config, "after_share", 0 < config.after_share <= 1, "in (0, 1]")
    _check_optimizers(config)
    _check_processes(config)
    if config.lora_alpha is not None:
        positive = 0 < config.lora_alpha < math.inf
        _require(config, "lora_alpha", positive, "positive")
        if not config.lora:
            raise InputError("--lora-alpha needs --lora, the rank of what it scales")
    if config.train_file and not config.task_eval_file:
        raise InputError(
            "--train-file needs --task-eval-file, the held-out rows that measure "
            "what was learned"
        )
    _check_generated(config)


def _require(config: Config, field: str, holds: bool, allowed: str) -> None:
    if not holds:
        value = getattr(config, field)
        raise InputError(f"{option(field)} must be {allowed}, got {value}")


def _check_generated(config: Config) -> None:
    task = TASKS[config.task]
    most: dict[str, int] = {}
    if not config.task_eval_file:
        most["evaluation_rows"] = task.available("test")
    if not config.train_file:
        most["training_rows"] = task.available("train")
    for field, count in most.items():
        allowed = f"at most {count} for --task {config.task}"
        _require(config, field, getattr(config, field) <= count, allowed)


def _check_processes(config: Config) -> None:
    fields = ("coordinator", "num_processes", "process_id")
    given = [field for field in fields if getattr(config, field) is not None]
    missing = [option(field) for field in fields if field not in given]
    if config.distributed and given:
        raise InputError(f"--distributed finds {option(given[0])} by itself; leave out")
    if not given:
        return
    if missing:
        raise InputError(
            "--coordinator, --num-processes and --process-id are given together; "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    host, _, port = (config.coordinator or "").rpartition(":")
    numeric = port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    allowed = "HOST:PORT with a port from 1 to 65535"
    _require(config, "coordinator", bool(host) and numeric, allowed)
    count, own = config.num_processes or 0, config.process_id or 0
    _require(config, "num_processes", count > 0, ">= 1")
    allowed = f"from 0 to {count - 1}, one less than --num-processes"
    _require(config, "process_id", 0 <= own < count, allowed)


def _check_optimizers(config: Config) -> None:
    known = ", ".join(OPTIMIZERS)
    if not config.optimizer:
        raise InputError(f"--optimizer needs at least one of {known}")
    for entry in config.optimizer:
        name = entry.removesuffix(REPLAY)
        if name not in OPTIMIZERS:
            raise InputError(f"--optimizer must be of {known}, got {entry!r}")
        if config.optimizer.count(entry) > 1:
            raise InputError(f"--optimizer names {entry} twice")
        if entry != name and not config.replay:
            raise InputError(f"--optimizer {entry} needs --replay, the number of texts")
        if config.lora and name in NOT_WITH_LORA:
            raise InputError(f"--optimizer {name} trains kernels, which --lora freezes")
    arms(config)


def retention_files(config: Config) -> dict[str, pathlib.Path]:
    """Returns the paths of --retention-file by name.

    Raises:
      InputError: an entry is not NAME=PATH, or its name is taken.
    """
    files: dict[str, pathlib.Path] = {}
    for entry in config.retention_file:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise InputError(f"--retention-file must be NAME=PATH, got {entry!r}")
        if name in files or name in RESERVED:
            raise InputError(f"--retention-file has the name {name!r}, which is taken")
        files[name] = pathlib.Path(path)
    return files


def check_context(config: Config, model: str, longest: int) -> None:
    """Checks that sequences, and answers decoded after prompts, fit the model's
    context.

    Args:
      config: the run's settings.
      model: the model's name, for the message.
      longest: the model's number of positions.

    Raises:
      InputError: they do not fit.
    """
    if config.sequence_length > longest:
        raise InputError(
            f"--sequence-length must be at most {longest}, the context of {model}, "
            f"got {config.sequence_length}"
        )
    if config.sequence_length + config.max_new_tokens > longest:
        raise InputError(
            f"--max-new-tokens must be at most {longest - config.sequence_length} "
            f"with sequences of {config.sequence_length} tokens in the context of "
            f"{model}, {longest}, got {config.max_new_tokens}"
        )


def check_room(needed: Mapping[pathlib.Path, int]) -> None:
    """Checks that directories exist or can be created, and have enough space.

    Args:
      needed: number of bytes to be written, by directory.

    Raises:
      InputError: a path is a file, or there is too little space.
    """
    disks: dict[int, list[pathlib.Path]] = {}
    for path in needed:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; a directory is needed")
        existing = nearest_existing(path)
        if not existing.is_dir():
            raise InputError(f"{existing} is a file, so {path} cannot be made")
        disk = disks.setdefault(existing.stat().st_dev, [])
        disk.append(path)
        size = sum(needed[other] for other in disk)
        free = shutil.disk_usage(existing).free
        if free < size:
            raise InputError(
                f"{' and '.join(map(str, disk))} needs about {_amount(size)} and its "
                f"disk has {_amount(free)} free"
            )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def check_rows(config: Config, multiple: int) -> None:
    """Checks that batches can be divided over the devices.

    Args:
      config: the run's settings.
      multiple: the number of parts into which the mesh divides a batch.

    Raises:
      InputError: they cannot.
    """
    allowed = f"a multiple of {multiple}, the mesh's data and fsdp devices"
    for field in ("batch_size", "replay_batch_size"):
        _require(config, field, getattr(config, field) % multiple == 0, allowed)
    if any(NEEDS.get(arm.optimizer) == FISHER for arm in arms(config)):
        _require(config, "own_texts", config.own_texts % multiple == 0, allowed)
