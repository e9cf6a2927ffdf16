"""The files of one arm: checkpoints with checksums, metrics, and the result."""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tqdm

from examples.finetune.command.config import option
from examples.finetune.command.errors import InputError
from examples.finetune.storage import checksums
from examples.finetune.storage.board import Board
from examples.finetune.storage.run_directory import RESULT, refuse_differences
from examples.finetune.system import hosts
from examples.finetune.system.files import (
    append_json,
    read_json,
    read_json_lines,
    replacing,
    write_json,
    write_json_lines,
)
from examples.trainers.orbax_checkpoints import differences

# The newest one, and one to return to if the newest is damaged.
KEPT_CHECKPOINTS = 2
_SUMS = "checksums"


@dataclasses.dataclass(frozen=True)
class Position:
    """The progress of an arm.

    Attributes:
      step: number of completed optimizer steps.
      tokens: number of tokens that the model has processed, without padding.
      seconds: time spent training, without saving.
      skipped: number of steps without an update, because of non-finite gradients.
      skipped_in_a_row: number of consecutive skipped steps at the end.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


class ArmFiles:
    """The files of one arm: checkpoints, metrics and result."""

    def __init__(
        self, run: pathlib.Path, name: str, learning_rate: float, replay: bool = False
    ) -> None:
        """Creates or finds the arm's directory.

        Raises:
          InputError: the arm was begun with another learning rate, or with replay and
            continues without, or the reverse.
        """
        self.path = run / "arms" / name
        own = {"learning_rate": learning_rate, "replay": replay}
        hosts.by_first(lambda: self._claim(own))
        self._manager: ocp.CheckpointManager | None = None
        self._board = Board(run / "tensorboard" / name)

    def _claim(self, own: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        found = read_json(self.path / "arm.json")
        if found is None:
            write_json(self.path / "arm.json", own)
        else:
            values = {
                f"{option(name)} of {self.path.name}": (found.get(name), value)
                for name, value in own.items()
            }
            refuse_differences(self.path.parents[1], values)

    def __enter__(self) -> "ArmFiles":
        self._manager = ocp.CheckpointManager(
            self.path.absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT_CHECKPOINTS,
                cleanup_tmp_directories=True,
                # The next step donates arrays that an asynchronous save would still
                # read.
                enable_async_checkpointing=False,
            ),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.close()
        self._manager = None
        self._board.close()

    @property
    def _checkpoints(self) -> ocp.CheckpointManager:
        if self._manager is None:
            raise RuntimeError("ArmFiles must be entered with `with` first.")
        return self._manager

    def save(self, position: Position, params: Any, state: Any, batches: Any) -> None:
        """Writes a checkpoint, and deletes all older ones except the last.

        Raises:
          InputError: it cannot be written, for example on a full disk.
        """
        data, place = batches.get_state(), dataclasses.asdict(position)
        sums = _sums(params, state, data, place)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            state=ocp.args.StandardSave(state),
            # Grain's own handler would write one for each process, which are all equal.
            data=ocp.args.JsonSave(data),
            position=ocp.args.JsonSave({**place, _SUMS: sums}),
        )
        try:
            self._checkpoints.save(position.step, args=items, force=True)
        # Orbax and TensorStore raise various errors.
        except Exception as error:
            raise InputError(
                f"The checkpoint of step {position.step} could not be written to "
                f"{self.path}: {_reason(error)}; earlier ones are intact"
            ) from error

    def restore(
        self, params: Any, state: Any, batches: Any
    ) -> tuple[Any, Any, Position]:
        """Restores the newest valid checkpoint, and sets `batches` to its position.

        Newer, damaged checkpoints are removed, and the user is notified.

        Args:
          params: parameters of the right shapes and shardings.
          state: an optimizer state of the right shapes and shardings.
          batches: Grain's iterator.

        Returns:
          Parameters, state and position; without a checkpoint, the arguments and step
          0.

        Raises:
          InputError: all checkpoints are damaged, or of another model or optimizer.
        """
        damaged: dict[int, Exception] = {}
        steps = hosts.by_first(lambda: [*self._checkpoints.all_steps()])
        for step in sorted(steps, reverse=True):
            found, failure = (params, state, Position()), None
            try:
                found = self._restore(step, params, state, batches)
            # Orbax, TensorStore and Grain raise various errors.
            except Exception as error:
                failure = error
            if any(hosts.gathered(failure is not None)):
                damaged[step] = failure or ValueError("for another process")
                continue
            for other, error in damaged.items():
                self._remove(other, self._damage(other, error))
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
                data=ocp.args.JsonRestore(),
                position=ocp.args.JsonRestore(),
            ),
        )
        position = dict(items["position"])
        wanted = position.pop(_SUMS, {})
        found = _sums(items["params"], items["state"], items["data"], position)
        changed = [name for name in found if found[name] != wanted.get(name)]
        if changed:
            raise ValueError(f"what is stored of {', '.join(changed)} was changed")
        batches.set_state(items["data"])
        return items["params"], items["state"], Position(**position)

    def restore_params(self, params: Any) -> Any:
        """Returns the newest checkpoint's parameters, placed like `params`.

        Raises:
          InputError: the checkpoint is missing or damaged.
        """
        step = hosts.by_first(self._checkpoints.latest_step)
        if step is None:
            again = f"remove {self.path / RESULT} and it is trained again"
            raise InputError(f"{self.path} has no checkpoint; {again}")
        try:
            wanted = ocp.args.Composite(
                params=self._checked(step, "params", params),
                position=ocp.args.JsonRestore(),
            )
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
        return f"The checkpoint {path} is damaged ({_reason(error)})"

    def _remove(self, step: int, why: str) -> None:
        def remove() -> None:
            going = f"{why} and removed; the run goes on from the one before it"
            tqdm.tqdm.write(going, file=sys.stderr)
            shutil.rmtree(self._checkpoints.directory / str(step))

        hosts.by_first(remove)
        self._checkpoints.reload()

    def _all_damaged(self, damaged: Mapping[int, Exception]) -> Exception:
        newest = max(damaged)
        # Another model or optimizer is more likely than damage to all of them.
        if all(isinstance(error, InputError) for error in damaged.values()):
            return damaged[newest]
        return InputError(
            f"{self._damage(newest, damaged[newest])}, and no older one is good; put "
            f"back a copy, or remove {self.path} and the arm begins anew"
        )

    def _checked(
        self, step: int | None, item: str, tree: Any
    ) -> ocp.args.StandardRestore:
        """Describes what to restore; raises `InputError` if the checkpoint differs."""
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        path = self._checkpoints.directory / str(step) / item
        # Orbax would cast to another dtype, and would not name an array of another
        # shape.
        stored = ocp.StandardCheckpointHandler().metadata(path).tree
        found = differences(stored, wanted)
        if found:
            raise InputError(
                f"The checkpoint {path} is of another model or optimizer: "
                f"{'; '.join(found)}; name another --output"
            )
        return ocp.args.StandardRestore(wanted)

    def keep_batch(self, batch: Mapping[str, np.ndarray]) -> pathlib.Path:
        """Writes a batch without usable gradients, for inspection."""
        with replacing(self.path / "skipped.npz") as file:
            np.savez(file, allow_pickle=False, **batch)
        return self.path / "skipped.npz"

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a line to the arm's metrics, and to TensorBoard's if available."""
        if not hosts.is_first():
            return
        append_json(self.path / "metrics.jsonl", row)
        self._board.add(row)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the arm's metrics so far."""
        return read_json_lines(self.path / "metrics.jsonl")

    def _keep_metrics(self, step: int) -> None:
        # Steps after the checkpoint are repeated and logged again.
        def keep() -> None:
            rows = [row for row in self.metrics() if row["step"] <= step]
            write_json_lines(self.path / "metrics.jsonl", rows)

        hosts.by_first(keep)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].partition(". See full")[0]


def _sums(
    params: Any, state: Any, data: Any, position: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the checksums of a checkpoint's contents."""
    return {
        "params": checksums.of_tree(params),
        "state": checksums.of_tree(state),
        "data": checksums.of_json(data),
        "position": checksums.of_json(position),
    }
