"""Counters of an arm's training: steps, skipped steps, seconds."""

import dataclasses
import sys
import time

import jax
import tqdm

from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch
from examples.finetune.storage.checkpoints import ArmFiles, Position
from examples.finetune.system import hosts


def bar(steps: int, done: int, name: str) -> tqdm.tqdm:
    """Returns a progress bar over the steps of an arm."""
    shown = {"total": steps, "initial": done, "desc": name, "unit": "step"}
    return tqdm.tqdm(**shown, mininterval=1, disable=not hosts.is_first())


class Skips:
    """Counts the steps without an update, and ends the run after too many in a row."""

    def __init__(
        self, limit: int, name: str, files: ArmFiles, position: Position
    ) -> None:
        """Continues counting.

        Args:
          limit: the number of skipped steps that are allowed in a row.
          name: the arm's name.
          files: the arm's files, for skipped batches.
          position: the position with the counts so far.
        """
        self._limit, self._name, self._files = limit, name, files
        self._total, self._row = position.skipped, position.skipped_in_a_row
        self._open: list[tuple[int, Batch, jax.Array]] = []

    def add(self, number: int, batch: Batch, finite: jax.Array) -> None:
        """Adds a step, and checks the previous one, which is complete by now."""
        self._open.append((number, batch, finite))
        if len(self._open) > 1:
            self._look(*self._open.pop(0))

    def counted(self, position: Position) -> Position:
        """Returns the position with all steps counted so far."""
        while self._open:
            self._look(*self._open.pop(0))
        return dataclasses.replace(
            position, skipped=self._total, skipped_in_a_row=self._row
        )

    def _look(self, number: int, batch: Batch, finite: jax.Array) -> None:
        if finite:
            self._row = 0
            return
        self._total, self._row = self._total + 1, self._row + 1
        if not hosts.is_first():
            kept = "the directory of the first process"
        else:
            kept = self._files.keep_batch(batch)
        what = (
            f"The gradients of step {number} of {self._name} are not finite; its batch "
            f"is in {kept}"
        )
        if self._row > self._limit:
            raise InputError(
                f"{what}; it is number {self._row} in a row and --max-skipped-steps "
                f"allows {self._limit}: look at the batch's rows and at the model, or "
                "try a lower --learning-rate in another --output; the last checkpoint "
                "is good"
            )
        if hosts.is_first():
            tqdm.tqdm.write(f"{what}; the step is skipped", file=sys.stderr)


class Meter:
    """Counts the seconds of training, without those of saving."""

    def __init__(self, position: Position) -> None:
        self._position = position
        self._since = time.perf_counter()

    def read(self, position: Position) -> tuple[Position, dict[str, float]]:
        """Returns the position with its seconds, and the speed since the last call."""
        now = time.perf_counter()
        passed = max(now - self._since, 1e-9)
        last = self._position
        position = dataclasses.replace(position, seconds=last.seconds + passed)
        self._position, self._since = position, now
        return position, {
            "seconds": position.seconds,
            "seconds_per_step": passed / (position.step - last.step),
            "tokens_per_second": (position.tokens - last.tokens) / passed,
        }

    def pause(self) -> None:
        """Stops counting until `resume`."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Counts again."""
        self._since += time.perf_counter() - self._paused
