"""The settings of a run: a frozen dataclass, its presets, and the command line."""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import tyro

from examples.finetune.command import options
from examples.finetune.command.errors import InputError

PROGRAM = "python -m examples.finetune"
REPLAY = "+replay"

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Config(
    options.Processes,
    options.Devices,
    options.Training,
    options.OwnText,
    options.Optimizing,
    options.Task,
    options.First,
):
    """All settings of a run; `options` documents each."""

    @property
    def keeps_master_weights(self) -> bool:
        """Whether the optimizer keeps what the parameters cannot represent."""
        narrow = self.param_dtype == "bfloat16"
        return {"auto": narrow, "on": True, "off": False}[self.master_weights]


class _Command:
    """Fine-tune a language model with several optimizers and compare what each forgets.

    Every arm starts from the same weights and sees the same batches; an arm is one
    optimizer at one learning rate. The run directory receives report.md, summary.json,
    metrics.jsonl, pictures and checkpoints. If a run is interrupted by SIGTERM or
    Ctrl-C (it saves after the step and exits with status 143 or 130), by a crash or by
    a full disk, the same command resumes it. After status 2, the message says how to
    fix the input.
    """


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
        own_texts=8,
    ),
}

# Settings of storage, of checkpoints and of devices, which do not affect the results,
# so that a run may continue with other values. Arms are compared separately.
FREE_SETTINGS = {
    *("output", "preset", "optimizer", "learning_rate", "mesh"),
    *("coordinator", "num_processes", "process_id", "distributed"),
    *("checkpoint_every", "log_every", "max_skipped_steps", "export"),
}


def parse(arguments: Sequence[str]) -> Config:
    """Fills a Config from the command line and the preset that it names.

    Args:
      arguments: the words after the program's name.

    Returns:
      The configuration; only the types of its values have been checked.

    Raises:
      SystemExit: with status 2 after tyro's message, for an unknown option or a value
        of the wrong type; with status 0 after `--help`.
    """
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--preset", nargs="?")
    preset = first_look.parse_known_args(arguments)[0].preset
    default = PRESETS.get(preset, Config())
    # tyro shows each nested dataclass as a group in the help.
    groups = [(_snake(group), group) for group in options.GROUPS]
    command = dataclasses.make_dataclass("Command", groups, frozen=True)
    command.__doc__ = _Command.__doc__
    nested = command(**{name: _part(default, group) for name, group in groups})
    filled = fill(nested, PROGRAM, arguments)
    parts = [getattr(filled, name) for name, _ in groups]
    return Config(**{name: x for part in parts for name, x in vars(part).items()})


def _snake(group: type[Any]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", group.__name__).lower()


def _part(config: Config, group: type[Any]) -> Any:
    names = [field.name for field in dataclasses.fields(group)]
    return group(**{name: getattr(config, name) for name in names})


def fill(default: Options, program: str, arguments: Sequence[str]) -> Options:
    """Fills a frozen dataclass of options from a command line.

    Args:
      default: the values of options that the command line does not set.
      program: the command, for the help.
      arguments: the arguments after the command.

    Returns:
      A dataclass of the same class; only the types of its values have been checked.

    Raises:
      SystemExit: as for `parse`.
    """
    return tyro.cli(
        type(default),
        prog=program,
        args=arguments,
        default=default,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes),
    )


class Arm(NamedTuple):
    """One optimizer at one learning rate.

    Attributes:
      name: its name in tables, and of its directory.
      optimizer: its name in `optimizers.OPTIMIZERS`.
      peak: its peak learning rate.
      replay: whether its steps keep the model close to the base model on --replay
        texts.
    """

    name: str
    optimizer: str
    peak: float
    replay: bool


def arms(config: Config) -> list[Arm]:
    """Returns the arms of a run, in the order in which they are trained.

    Raises:
      InputError: an entry of --learning-rate is not a number or names no arm.
    """
    chosen = [name for name in config.optimizer if name.endswith(REPLAY)]
    made = []
    for name, rates in learning_rates(config).items():
        replay = bool(config.replay) and (name in chosen or not chosen)
        optimizer = name.removesuffix(REPLAY)
        for rate in rates:
            full = f"{name}@{rate:g}" if len(rates) > 1 else name
            made.append(Arm(full, optimizer, rate, replay))
    return made


def learning_rates(config: Config) -> dict[str, list[float]]:
    """Returns the peak learning rates of every entry of --optimizer.

    Raises:
      InputError: an entry of --learning-rate is not a number or does not name an
        optimizer of the run, or an optimizer has no rate or one rate twice.
    """
    common, own = [], {}
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
        rates = own.setdefault(name, []) if name else common
        if rate in rates:
            raise InputError(f"--learning-rate has {entry!r} twice")
        rates.append(rate)
    found = {name: own.get(name, common) for name in config.optimizer}
    if not config.learning_rate:
        return {name: [_usual_rate(name)] for name in config.optimizer}
    missing = [name for name, rates in found.items() if not rates]
    if missing:
        raise InputError(f"--learning-rate gives no rate for {', '.join(missing)}")
    return found


def _usual_rate(name: str) -> float:
    other = options.LEARNING_RATES.get(
        name.removesuffix(REPLAY), options.OTHER_LEARNING_RATE
    )
    return options.LEARNING_RATES.get(name, other)


def strength(config: Config, optimizer: str) -> float:
    """Returns the strength of an optimizer's pull: --strength, or its default."""
    if config.strength is not None:
        return config.strength
    return options.STRENGTHS.get(optimizer, options.OTHER_STRENGTH)


def to_json(config: Config) -> dict[str, Any]:
    """Returns the configuration as JSON values (paths as text, tuples as lists)."""
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
    """Returns the command-line spelling of a field."""
    return "--" + field.replace("_", "-")
