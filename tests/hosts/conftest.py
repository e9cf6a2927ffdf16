"""Runs of several processes, each made once for all tests that look at it."""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from tests.finetune import small
from tests.hosts import processes


class Run(NamedTuple):
    """A run and what it left."""

    path: pathlib.Path
    ended: list[processes.Ended]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with the tiny model and the compiled programs."""
    path = tmp_path_factory.mktemp("hosts")
    small.write_model(path / "tiny-llama")
    return path


def options(place: pathlib.Path, name: str, mesh: str) -> list[str]:
    """The options of a run of MoFO on a mesh, and its directory."""
    words = small.options(place / "tiny-llama", place / name / "run")
    sizes = ("--evaluation-problems", "2", "--knowledge-questions", "2")
    return [
        *(*words, *sizes, "--retention-sequences", "1", "--max-new-tokens", "4"),
        *("--optimizer", "mofo", "--mesh", mesh),
    ]


def cache(place: pathlib.Path) -> dict[str, str]:
    """Lets processes share what they compile."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run(
    place: pathlib.Path,
    name: str,
    count: int,
    devices: int,
    *words: str,
    mesh: str,
    watch: Mapping[int, Mapping[str, Any]] | None = None,
    everywhere: Mapping[str, Any] | None = None,
) -> Run:
    """Runs a command by several processes and waits for all of them.

    Args:
      place: for all runs.
      name: of the run; its directory may be there.
      count: processes.
      devices: of each process.
      words: further options.
      mesh: of all devices.
      watch: what `program` is told, by process.
      everywhere: what it is told in every process.
    """
    common = [*options(place, name, mesh), *words]
    told = [{**(everywhere or {}), **(watch or {}).get(i, {})} for i in range(count)]
    slurm = "--distributed" in words
    joining = [[]] * count if slurm else processes.join(count)
    environments = processes.slurm(count) if slurm else [{}] * count
    ended = processes.run(
        pathlib.Path(tempfile.mkdtemp(dir=place)),
        devices,
        [[*common, *join] for join in joining],
        watch=told,
        environments=[cache(place) | own for own in environments],
    )
    return Run(place / name / "run", ended)


@pytest.fixture(scope="session")
def alone(place: pathlib.Path) -> Run:
    """One process with four devices."""
    exported = ("--export", str(place / "alone" / "exported"))
    return run(place, "alone", 1, 4, *exported, mesh="fsdp=2,tensor=2")


@pytest.fixture(scope="session")
def pair(place: pathlib.Path) -> Run:
    """Two processes with two devices each, which SLURM has started."""
    words = ("--distributed", "--export", str(place / "pair" / "exported"))
    return run(place, "pair", 2, 2, *words, mesh="fsdp=2,tensor=2")


@pytest.fixture(scope="session")
def broken(place: pathlib.Path) -> tuple[Run, Run]:
    """Two processes, one of which is killed after its second step; the same again."""
    common = {"mesh": "fsdp=2,tensor=2", "everywhere": {"train_only": True}}
    return (
        run(place, "broken", 2, 2, watch={1: {"kill_after": 2}}, **common),
        run(place, "broken", 2, 2, **common),
    )


@pytest.fixture(scope="session")
def four(place: pathlib.Path) -> Run:
    """Four processes with two devices each; of step 2 a copy is kept."""
    told = {"train_only": True, "copy": str(place / "copy")}
    return run(place, "four", 4, 2, mesh="fsdp=4,tensor=2", everywhere=told)


@pytest.fixture(scope="session")
def two_go_on(place: pathlib.Path, four: Run) -> Run:
    """Two processes that go on from the copy, on the same mesh of eight devices."""
    shutil.copytree(place / "copy", place / "two" / "run")
    told = {"train_only": True}
    return run(place, "two", 2, 4, mesh="fsdp=4,tensor=2", everywhere=told)


@pytest.fixture(scope="session")
def one_goes_on(place: pathlib.Path, four: Run) -> Run:
    """One process that goes on from the copy, on a mesh of two devices."""
    shutil.copytree(place / "copy", place / "one" / "run")
    told = {"train_only": True}
    return run(place, "one", 1, 2, mesh="fsdp=2", everywhere=told)
