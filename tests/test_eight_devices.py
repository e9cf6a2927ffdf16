"""Runs the tests in the folders `eight_devices` in a process that has eight devices.

Other tests run with one device, like most users' tests. On one CPU device no array is
sharded, and MoFO counts in another way. With an empty `XLA_FLAGS`, these tests compile
programs with optimization, as for users:

    XLA_FLAGS= python -m pytest tests/test_eight_devices.py
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import EIGHT_DEVICES_FLAG, EIGHT_DEVICES_FOLDER

# As set by `conftest` or by the user.
XLA_FLAGS = os.environ["XLA_FLAGS"]
FOLDERS = sorted(pathlib.Path(__file__).parent.rglob(EIGHT_DEVICES_FOLDER))


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # The folder of its tests may be found, too, as a package without an `__init__.py`.
    return spec is not None and spec.origin is not None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_on_eight_devices(folder: pathlib.Path) -> None:
    trainer = folder.parent
    if trainer.parent.name == "trainers" and not _is_installed(trainer.name):
        pytest.skip(f"{trainer.name} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [*command, str(folder)],
        env={**os.environ, "XLA_FLAGS": f"{EIGHT_DEVICES_FLAG} {XLA_FLAGS}"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(process.stdout[-10_000:])
    assert process.returncode == 0, process.stdout[-10_000:] + process.stderr[-2_000:]
