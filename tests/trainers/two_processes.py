"""The first step of the inverse input covariance, in one of two processes.

Run it with `python -m tests.trainers.two_processes TRAINER FOLDER PORT INDEX`. Both
processes have two devices.
"""

import contextlib
import importlib
import itertools
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax

# The arguments of `check_scaled_step` that divide the parameters among the devices.
ARGUMENTS: dict[str, Callable[[pathlib.Path], tuple[Any, ...]]] = {
    "kauldron": lambda folder: (folder, True),
    "levanter": lambda folder: (str(folder),),
    "maxtext": lambda folder: (folder, "scan_layers=true", "ici_fsdp_parallelism=4"),
    "tunix": lambda _: (4,),
}


def main(trainer: str, folder: str, port: str, index: str) -> None:
    """Joins the other process, and compares the step with NumPy's."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    assert jax.device_count() == 4
    runs = importlib.import_module(f"tests.trainers.{trainer}.{trainer}_runs")
    places = (pathlib.Path(folder) / str(number) for number in itertools.count())

    def shared() -> contextlib.AbstractContextManager[str]:
        # The processes take the same steps, and write a checkpoint together.
        place = next(places)
        place.mkdir(exist_ok=True)
        return contextlib.nullcontext(str(place))

    files = types.SimpleNamespace(TemporaryDirectory=shared)
    with mock.patch.object(runs, "tempfile", files, create=True):
        runs.check_scaled_step(*ARGUMENTS[trainer](pathlib.Path(folder) / "ours"))
    print("equal to NumPy")


if __name__ == "__main__":
    main(*sys.argv[1:])
