"""The run directory: what is kept of a run so that the same command can go on.

settings.json            what the run computes; other settings are refused
base.json, base.npz      the base model's measurements and final hidden states
arms/NAME/arm.json       the arm's learning rate
arms/NAME/checkpoints/   Orbax: what is trained, optimizer state, position, progress
arms/NAME/metrics.jsonl  one line a logged step
arms/NAME/result.json    the finished arm's measurements
tensorboard/NAME/        the logged steps again, where tensorboardX is installed
"""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from examples.finetune import hosts
from examples.finetune.errors import InputError
from examples.finetune.files import (
    append_json,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
)
from examples.trainers.orbax_checkpoints import differences

KEPT_CHECKPOINTS = 1
RESULT = "result.json"


def claim(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Makes a directory this run's, or finds that it already is.

    Args:
      path: the run directory, made if it does not exist.
      settings: option to JSON value, all that decides what the run computes.

    Raises:
      InputError: the directory belongs to other settings, is no run directory but
        has files, or cannot be written.
    """
    try:
        found = read_json(path / "settings.json")
        if found is None:
            if path.is_dir() and any(path.iterdir()):
                raise InputError(
                    f"--output {path} has files but is no run directory; name a new one"
                )
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "settings.json", dict(settings))
            return
        # Also where it exists: it may not be writable any more.
        write_json(path / "settings.json", found)
    except OSError as error:
        raise InputError(
            f"--output {path} cannot be written: {error.strerror}"
        ) from None
    now = json.loads(json.dumps(settings))
    names = [*now, *(name for name in found if name not in now)]
    refuse_differences(path, {name: (found.get(name), now.get(name)) for name in names})


def refuse_differences(
    path: pathlib.Path, values: Mapping[str, tuple[Any, Any]]
) -> None:
    """Raises InputError if a setting's stored value is not the one now asked for.

    Args:
      path: the run directory, for the message.
      values: option to its stored and its present value.
    """
    differences = [
        f"{name} was {_shown(old)} and is now {_shown(new)}"
        for name, (old, new) in values.items()
        if old != new
    ]
    if differences:
        raise InputError(
            f"--output {path} belongs to a run of other settings: "
            f"{'; '.join(differences)}; name another directory or the same settings"
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value).strip('"')


@dataclasses.dataclass(frozen=True)
class Position:
    """How far an arm has come.

    Attributes:
      step: optimizer steps done.
      tokens: tokens that went through the model, without padding.
      seconds: spent training, without saving.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class ArmFiles:
    """The files of one arm: checkpoints, metrics and result."""

    def __init__(self, run: pathlib.Path, name: str, learning_rate: float) -> None:
        """Makes or finds the arm's directory.

        Raises:
          InputError: the arm was begun with another learning rate.
        """
        self.path = run / "arms" / name
        hosts.by_first(lambda: self._claim(learning_rate))
        self._manager: ocp.CheckpointManager | None = None
        self._board: Any = None
        self._board_path = run / "tensorboard" / name

    def _claim(self, learning_rate: float) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        found = read_json(self.path / "arm.json")
        if found is None:
            write_json(self.path / "arm.json", {"learning_rate": learning_rate})
        else:
            stored = found["learning_rate"]
            option = f"--learning-rate of {self.path.name}"
            run = self.path.parents[1]
            refuse_differences(run, {option: (stored, learning_rate)})

    def __enter__(self) -> "ArmFiles":
        self._manager = ocp.CheckpointManager(
            self.path.absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT_CHECKPOINTS,
                cleanup_tmp_directories=True,
                # The next step donates the arrays that a background save would read.
                enable_async_checkpointing=False,
            ),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.close()
        self._manager = None
        if self._board is not None:
            self._board.close()
            self._board = None

    @property
    def _checkpoints(self) -> ocp.CheckpointManager:
        if self._manager is None:
            raise RuntimeError("ArmFiles must be entered with `with` first.")
        return self._manager

    def save(self, position: Position, params: Any, state: Any, batches: Any) -> None:
        """Writes a checkpoint and drops the one before.

        Raises:
          InputError: it could not be written, for example on a full disk.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            state=ocp.args.StandardSave(state),
            # Grain's own handler would keep one for each process, all of them equal.
            data=ocp.args.JsonSave(batches.get_state()),
            position=ocp.args.JsonSave(dataclasses.asdict(position)),
        )
        try:
            self._checkpoints.save(position.step, args=items, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"The checkpoint of step {position.step} could not be written to "
                f"{self.path}: {reason}; earlier ones are intact"
            ) from error

    def restore(
        self, params: Any, state: Any, batches: Any
    ) -> tuple[Any, Any, Position]:
        """Goes back to the newest checkpoint, and sets `batches` to its position.

        Args:
          params: parameters of the right shapes and shardings.
          state: an optimizer state, likewise.
          batches: Grain's iterator.

        Returns:
          Parameters, state and position; the arguments and step 0 without checkpoint.

        Raises:
          InputError: the checkpoint is one of another model or optimizer.
        """
        step = hosts.by_first(self._checkpoints.latest_step)
        if step is None:
            self._keep_metrics(0)
            return params, state, Position()
        items = self._checkpoints.restore(
            step,
            args=ocp.args.Composite(
                params=self._checked(step, "params", params),
                state=self._checked(step, "state", state),
                data=ocp.args.JsonRestore(),
                position=ocp.args.JsonRestore(),
            ),
        )
        batches.set_state(items["data"])
        self._keep_metrics(step)
        return items["params"], items["state"], Position(**items["position"])

    def restore_params(self, params: Any) -> Any:
        """The parameters of the newest checkpoint, placed like `params`."""
        step = hosts.by_first(self._checkpoints.latest_step)
        items = self._checkpoints.restore(
            step, args=ocp.args.Composite(params=self._checked(step, "params", params))
        )
        return items["params"]

    def _checked(
        self, step: int | None, item: str, tree: Any
    ) -> ocp.args.StandardRestore:
        """Describes what to restore, or raises InputError if it is not stored so."""
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        path = self._checkpoints.directory / str(step) / item
        # Orbax would cast to another dtype, and not say which shape is another.
        stored = ocp.StandardCheckpointHandler().metadata(path).tree
        found = differences(stored, wanted)
        if found:
            raise InputError(
                f"The checkpoint {path} is of another model or optimizer: "
                f"{'; '.join(found)}; name another --output"
            )
        return ocp.args.StandardRestore(wanted)

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a line to the arm's metrics, and to TensorBoard's if it is there."""
        if not hosts.is_first():
            return
        append_json(self.path / "metrics.jsonl", row)
        if importlib.util.find_spec("tensorboardX") is None:
            return
        if self._board is None:
            from tensorboardX import SummaryWriter

            # Steps after the checkpoint are done again; the first time is dropped.
            self._board = SummaryWriter(str(self._board_path), purge_step=row["step"])
        for name, value in row.items():
            if name not in ("arm", "step"):
                self._board.add_scalar(name, value, row["step"])

    def metrics(self) -> list[dict[str, Any]]:
        """The arm's lines so far."""
        return read_json_lines(self.path / "metrics.jsonl")

    def _keep_metrics(self, step: int) -> None:
        # Steps after the checkpoint are done again and logged again.
        def keep() -> None:
            rows = [row for row in self.metrics() if row["step"] <= step]
            write_json_lines(self.path / "metrics.jsonl", rows)

        hosts.by_first(keep)


def finished_arms(
    run: pathlib.Path, first: Sequence[str]
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The results and metrics of every finished arm of a run directory.

    Args:
      run: the run directory.
      first: names that come first; the others follow in alphabetical order.
    """
    found = sorted(path.parent.name for path in run.glob(f"arms/*/{RESULT}"))
    names = [*(name for name in first if name in found)]
    names += [name for name in found if name not in first]
    return {
        name: (
            read_json(run / "arms" / name / RESULT) or {},
            read_json_lines(run / "arms" / name / "metrics.jsonl"),
        )
        for name in names
    }
