"""Runs the tests in the folders `eight_devices` in a process that has eight devices.

The others run with one device, as most users' tests do, where MoFO counts in another
way: on one CPU no array can be sharded. With an empty `XLA_FLAGS` these tests run on
programs that are compiled as a user's are:

    XLA_FLAGS= python -m pytest tests/test_eight_devices.py
"""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import EIGHT_DEVICES_FLAG, EIGHT_DEVICES_FOLDER

# As `conftest` sets it, or as it was set for the tests.
XLA_FLAGS = os.environ["XLA_FLAGS"]
FOLDERS = sorted(pathlib.Path(__file__).parent.rglob(EIGHT_DEVICES_FOLDER))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_on_eight_devices(folder: pathlib.Path) -> None:
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
