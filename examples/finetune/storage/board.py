"""Logged steps for TensorBoard, if tensorboardX is installed."""

import contextlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any


class Board:
    """A TensorBoard directory. Failures to write it do not affect the run."""

    def __init__(self, path: pathlib.Path) -> None:
        """Creates nothing until the first step."""
        self._path = path
        self._writer: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds the numbers of a logged step."""
        if importlib.util.find_spec("tensorboardX") is None:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Steps after the checkpoint are repeated, and their first entries dropped.
            self._writer = SummaryWriter(str(self._path), purge_step=row["step"])
        for name, value in row.items():
            if name not in ("arm", "step"):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Writes remaining data."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None
