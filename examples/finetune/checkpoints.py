"""The run directory: what is kept of a run so that the same command can go on.

settings.json            what the run computes; other settings are refused
base.json, base.npz      the base model's measurements and final hidden states
arms/NAME/arm.json       the arm's learning rate
arms/NAME/checkpoints/   Orbax: what is trained, optimizer state, position, progress,
                         and checksums of them
arms/NAME/metrics.jsonl  one line a logged step
arms/NAME/skipped.npz    the last batch whose step was skipped
arms/NAME/result.json    the finished arm's measurements
tensorboard/NAME/        the logged steps again, where tensorboardX is installed
.lock                    held by the process that works here
"""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from examples.finetune import checksums
from examples.finetune.errors import InputError
from examples.finetune.files import (
    UNFINISHED,
    append_json,
    read_json,
    read_json_lines,
    replacing,
    write_json,
    write_json_lines,
)
from examples.trainers.orbax_checkpoints import differences

# The newest, and one to go back to if the newest is damaged.
KEPT_CHECKPOINTS = 2
RESULT = "result.json"
_LOCK = ".lock"
_SUMS = "checksums"


@contextlib.contextmanager
def claim(path: pathlib.Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Makes a directory this run's, or finds that it already is, for as long as it works.

    Args:
      path: the run directory, made if it does not exist.
      settings: option to JSON value, all that decides what the run computes.

    Raises:
      InputError: another process works in the directory, or it belongs to other
        settings, is no run directory but has files, or cannot be written.
    """
    lock = filelock.FileLock(path / _LOCK, timeout=0, is_singleton=False)
    with contextlib.ExitStack() as held:
        try:
            found = _settings_of(path)
            path.mkdir(parents=True, exist_ok=True)
            # The system lets go of it when the process ends, however it ends.
            held.enter_context(lock)
            # Also where it exists: it may not be writable any more.
            write_json(path / "settings.json", found or dict(settings))
            for left in path.rglob(f".*{UNFINISHED}"):
                left.unlink()
        except filelock.Timeout:
            raise InputError(
                f"--output {path} is in use: another process works there; wait until "
                "it ends, or name another directory"
            ) from None
        except OSError as error:
            raise InputError(
                f"--output {path} cannot be written: {error.strerror or error}"
            ) from None
        if found is not None:
            _refuse_other_settings(path, found, settings)
        yield


def _settings_of(path: pathlib.Path) -> dict[str, Any] | None:
    found = read_json(path / "settings.json")
    if found is None and path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if any(name != _LOCK and not name.endswith(UNFINISHED) for name in names):
            raise InputError(
                f"--output {path} has files but is no run directory; name a new one"
            )
    return found


def _refuse_other_settings(
    path: pathlib.Path, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
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
      skipped: steps that moved nothing, since their gradients were not finite.
      skipped_in_a_row: how many of them were the last ones.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


class ArmFiles:
    """The files of one arm: checkpoints, metrics and result."""

    def __init__(self, run: pathlib.Path, name: str, learning_rate: float) -> None:
        """Makes or finds the arm's directory.

        Raises:
          InputError: the arm was begun with another learning rate.
        """
        self.path = run / "arms" / name
        self.path.mkdir(parents=True, exist_ok=True)
        found = read_json(self.path / "arm.json")
        if found is None:
            write_json(self.path / "arm.json", {"learning_rate": learning_rate})
        else:
            stored = found.get("learning_rate")
            option = f"--learning-rate of {name}"
            refuse_differences(run, {option: (stored, learning_rate)})
        self._manager: ocp.CheckpointManager | None = None
        self._board: Any = None
        self._board_path = run / "tensorboard" / name

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
        """Writes a checkpoint and drops all but it and the one before.

        Raises:
          InputError: it could not be written, for example on a full disk.
        """
        sums = _sums(params, state, batches, dataclasses.asdict(position))
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            state=ocp.args.StandardSave(state),
            data=grain.checkpoint.CheckpointSave(batches),
            position=ocp.args.JsonSave({**dataclasses.asdict(position), _SUMS: sums}),
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
        """Goes back to the newest good checkpoint, and sets `batches` to its position.

        Newer ones that are damaged are removed, and the user is told.

        Args:
          params: parameters of the right shapes and shardings.
          state: an optimizer state, likewise.
          batches: Grain's iterator.

        Returns:
          Parameters, state and position; the arguments and step 0 without checkpoint.

        Raises:
          InputError: the checkpoints are all damaged, or of another model or optimizer.
        """
        damaged: dict[int, Exception] = {}
        for step in sorted(self._checkpoints.all_steps(), reverse=True):
            try:
                found = self._restore(step, params, state, batches)
            # Orbax, TensorStore and Grain each have errors of their own.
            except Exception as error:
                damaged[step] = error
                continue
            for other, error in damaged.items():
                warn(f"{self._damage(other, error)}; going on from step {step}")
                self._remove(other)
            self._keep_metrics(step)
            return found
        if damaged:
            raise self._all_damaged(damaged)
        self._keep_metrics(0)
        return params, state, Position()

    def _restore(
        self, step: int, params: Any, state: Any, batches: Any
    ) -> tuple[Any, Any, Position]:
        items = self._checkpoints.restore(
            step,
            args=ocp.args.Composite(
                params=self._checked(step, "params", params),
                state=self._checked(step, "state", state),
                data=grain.checkpoint.CheckpointRestore(batches),
                position=ocp.args.JsonRestore(),
            ),
        )
        position = dict(items["position"])
        wanted = position.pop(_SUMS)
        found = _sums(items["params"], items["state"], batches, position)
        changed = [name for name in found if found[name] != wanted[name]]
        if changed:
            raise ValueError(f"what is stored of {', '.join(changed)} was changed")
        return items["params"], items["state"], Position(**position)

    def restore_params(self, params: Any) -> Any:
        """The parameters of the newest checkpoint, placed like `params`.

        Raises:
          InputError: it is damaged, or there is none.
        """
        step = self._checkpoints.latest_step()
        if step is None:
            again = f"remove {self.path / RESULT} and it is trained again"
            raise InputError(f"{self.path} has no checkpoint; {again}")
        wanted = ocp.args.Composite(
            params=self._checked(step, "params", params),
            position=ocp.args.JsonRestore(),
        )
        try:
            items = self._checkpoints.restore(step, args=wanted)
            sums = checksums.of_tree(items["params"])
            if sums != items["position"][_SUMS]["params"]:
                raise ValueError("what is stored of params was changed")
        except Exception as error:
            raise InputError(
                f"{self._damage(step, error)}; remove {self.path / RESULT} and the "
                "steps after the checkpoint before it are trained again"
            ) from error
        return items["params"]

    def _damage(self, step: int, error: Exception) -> str:
        path = self._checkpoints.directory / str(step)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"The checkpoint {path} is damaged ({reason})"

    def _remove(self, step: int) -> None:
        shutil.rmtree(self._checkpoints.directory / str(step), ignore_errors=True)
        self._checkpoints.reload()

    def _all_damaged(self, damaged: Mapping[int, Exception]) -> Exception:
        newest = max(damaged)
        # Of another model or optimizer, which is more likely than damage to them all.
        if all(isinstance(error, InputError) for error in damaged.values()):
            return damaged[newest]
        return InputError(
            f"{self._damage(newest, damaged[newest])}, and no older one is good; put "
            f"back a copy, or remove {self.path} and the arm begins anew"
        )

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

    def keep_batch(self, batch: Mapping[str, np.ndarray]) -> pathlib.Path:
        """Writes a batch that gave no usable gradient, for a person to look at."""
        with replacing(self.path / "skipped.npz") as file:
            np.savez(file, allow_pickle=False, **batch)
        return self.path / "skipped.npz"

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a line to the arm's metrics, and to TensorBoard's if it is there."""
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
        rows = [row for row in self.metrics() if row["step"] <= step]
        write_json_lines(self.path / "metrics.jsonl", rows)


def _sums(
    params: Any, state: Any, batches: Any, position: Mapping[str, Any]
) -> dict[str, str]:
    """What a checkpoint says of its own content."""
    return {
        "params": checksums.of_tree(params),
        "state": checksums.of_tree(state),
        "data": checksums.of_json(batches.get_state()),
        "position": checksums.of_json(position),
    }


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
