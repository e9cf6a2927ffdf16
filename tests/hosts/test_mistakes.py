"""What is wrong on one process ends all; and options that do not fit together."""

import pathlib

import pytest

from examples.finetune import checks, config, hosts
from examples.finetune.errors import InputError
from tests.hosts import processes
from tests.hosts.conftest import options

ALL = "--coordinator 127.0.0.1:4000 --num-processes 2 --process-id 1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--process-id 0", "--coordinator and --num-processes are missing"),
        ("--coordinator a:1 --num-processes 2", "--process-id is missing"),
        (f"{ALL} --process-id 2", "--process-id must be from 0 to 1"),
        (f"{ALL} --process-id -1", "--process-id must be from 0 to 1"),
        (f"{ALL} --num-processes 0", "--num-processes must be >= 1"),
        (f"{ALL} --coordinator a:b", "--coordinator must be HOST:PORT"),
        (f"{ALL} --coordinator 4000", "--coordinator must be HOST:PORT"),
        (f"{ALL} --coordinator a:70000", "a port from 1 to 65535, got a:70000"),
        (f"{ALL} --distributed", "--distributed finds --coordinator by itself"),
    ],
)
def test_options_that_do_not_fit(words: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        checks.check_options(config.parse(words.split()))


def test_options_that_fit() -> None:
    for words in (ALL, "--distributed", f"{ALL} --coordinator [::1]:4000"):
        checks.check_options(config.parse(words.split()))


def test_how_a_run_is_started_is_none_of_its_settings() -> None:
    names = {"coordinator", "num_processes", "process_id", "distributed"}
    assert names <= config.FREE_SETTINGS


def test_processes_with_other_options_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [{"--steps": 4, "--model": "a"}, {"--steps": 5, "--model": "a"}]
    monkeypatch.setattr(hosts, "gathered", lambda value: [value, told[1]])
    with pytest.raises(InputError, match=r"--steps is 4 on process 0 and 5 on proc"):
        hosts.check_alike(told[0])


def test_a_mistake_on_one_process_ends_both(
    place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = options(place, "mistaken", "fsdp=2,tensor=2")
    own: list[list[str]] = [[], ["--task-eval-file", "/nowhere/x.jsonl"]]
    given: list[list[str]] = [
        [*words, *mistake, *join]
        for mistake, join in zip(own, processes.join(2), strict=True)
    ]
    ended = processes.run(tmp_path, 2, given)
    assert [process.status for process in ended] == [2, 2], ended
    reason = "/nowhere/x.jsonl does not exist; a JSONL file is needed."
    last = [process.errors.strip().splitlines()[-1] for process in ended]
    assert last == [f"error: On process 1: {reason}", f"error: {reason}"]
    assert not (place / "mistaken").exists()
