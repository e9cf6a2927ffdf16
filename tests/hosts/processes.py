"""Runs of several processes on this machine."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import filelock
import jax
import pytest

from examples.finetune.system import hosts
from tests.finetune import small
from tests.helpers import free_port

ROOT = pathlib.Path(__file__).parents[2]
# Far longer than any run here. No process may be left behind in any case.
LIMIT_SECONDS = 400
# Held while such processes run, so that pytest's workers run them one at a time.
LOCK = pathlib.Path(tempfile.gettempdir()) / "mofo_jax_hosts.lock"


class Ended(NamedTuple):
    """A process that has ended: status, output and observations of `program`."""

    status: int
    output: str
    errors: str
    seen: dict[str, Any]


def join(count: int) -> list[list[str]]:
    """Returns the options with which each process joins; none for a single process."""
    if count == 1:
        return [[]]
    common = ["--coordinator", f"127.0.0.1:{free_port()}"]
    common += ["--num-processes", str(count)]
    return [[*common, "--process-id", str(index)] for index in range(count)]


def slurm(count: int) -> list[dict[str, str]]:
    """Returns SLURM's environment of each process, on a node of this name."""
    port = str(free_port())
    return [
        {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
            "JAX_COORDINATOR_PORT": port,
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        }
        for index in range(count)
    ]


class Run(NamedTuple):
    """A run and its results."""

    path: pathlib.Path
    ended: list[Ended]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def options(place: pathlib.Path, name: str, mesh: str) -> list[str]:
    """Returns the options of a run of MoFO on a mesh, with its directory."""
    words = small.options(place / "tiny-llama", place / name / "run")
    sizes = ("--evaluation-rows", "2", "--knowledge-questions", "2")
    return [
        *(*words, *sizes, "--retention-sequences", "1", "--max-new-tokens", "4"),
        *("--optimizer", "mofo", "--mesh", mesh),
    ]


def run(
    place: pathlib.Path,
    name: str,
    count: int,
    devices: int,
    *words: str,
    mesh: str,
    watch: Mapping[int, Mapping[str, Any]] | None = None,
    everywhere: Mapping[str, Any] | None = None,
    own: Mapping[int, Sequence[str]] | None = None,
) -> Run:
    """Runs the command with several processes until all end.

    Args:
      place: a directory with the tiny model, for all runs of a test.
      name: the run's name; its directory may exist.
      count: number of processes.
      devices: number of devices of each process.
      words: additional options.
      mesh: the mesh over all devices.
      watch: what to pass to `program`, by process.
      everywhere: what to pass to `program` in every process.
      own: options of single processes.
    """
    if count > 1 and jax.__version_info__ < hosts.OLDEST_JAX:
        pytest.skip(f"several processes are not supported with jax {jax.__version__}")
    common = [*options(place, name, mesh), *words]
    told = [
        {**(everywhere or {}), **(watch or {}).get(index, {})} for index in range(count)
    ]
    detected = "--distributed" in words
    joining = [[]] * count if detected else join(count)
    environments = slurm(count) if detected else [{}] * count
    compiled = small.compiled_in(str(place / "cache"), devices)
    ended = start(
        pathlib.Path(tempfile.mkdtemp(dir=place)),
        [
            [*common, *named, *(own or {}).get(index, ())]
            for index, named in enumerate(joining)
        ],
        [compiled | extra for extra in environments],
        watch=told,
    )
    return Run(place / name / "run", ended)


def check_lost(other: Ended) -> str:
    """Returns the message of a process that ends because another was killed."""
    assert other.status == hosts.LOST, other.errors
    sentence = other.errors.strip().splitlines()[-1]
    assert sentence.startswith("error: process 0 of 2 cannot go on")
    assert "Start the same command on all hosts again" in sentence
    assert "Traceback" not in other.errors
    return sentence


def start(
    directory: pathlib.Path,
    arguments: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    *,
    module: str = "tests.hosts.program",
    watch: Sequence[Mapping[str, Any]] | None = None,
) -> list[Ended]:
    """Runs one process for each list of arguments at the same time, until all end.

    Args:
      directory: an existing directory for their output.
      arguments: the command's arguments.
      environments: additional environment variables of each process.
      module: the module that each process runs.
      watch: what to pass to `program`, by process.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        # Running more of them at a time would only be slower.
        stack.enter_context(filelock.FileLock(LOCK))
        for index, words in enumerate(arguments):
            report = {"report": str(directory / f"{index}.json")}
            told = json.dumps(report | dict(watch[index] if watch else {}))
            output, errors = (
                stack.enter_context((directory / f"{index}.{name}").open("wb"))
                for name in ("output", "errors")
            )
            process = subprocess.Popen(
                [sys.executable, "-m", module, told, *words],
                cwd=ROOT,
                env={**os.environ, **environments[index]},
                # Open as long as this process lives, so that they end with it.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
            )
            processes.append(process)
            stack.enter_context(process)
            stack.callback(process.kill)
        for process in processes:
            process.wait(LIMIT_SECONDS)
    return [_ended(directory, *pair) for pair in enumerate(processes)]


def _ended(
    directory: pathlib.Path, index: int, process: subprocess.Popen[bytes]
) -> Ended:
    report = directory / f"{index}.json"
    return Ended(
        process.returncode,
        (directory / f"{index}.output").read_text(),
        (directory / f"{index}.errors").read_text(),
        json.loads(report.read_text()) if report.exists() else {},
    )
