"""Invalid input on one process ends all; invalid combinations of options."""

import pathlib
import re

import pytest
import yaml

from examples.finetune.command import config
from examples.finetune.command.errors import InputError
from examples.finetune.running import checks
from examples.finetune.system import hosts
from tests.hosts import processes

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


def readme(language: str) -> list[str]:
    """Returns the code blocks of the page about several hosts."""
    text = (processes.ROOT / "examples/finetune/several_hosts.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_recipes_are_commands() -> None:
    (jobset,) = (yaml.safe_load(block) for block in readme("yaml"))
    assert jobset["kind"] == "JobSet"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (command,) = container["args"]
    own = command.replace("$JOB_COMPLETION_INDEX", str(spec["completions"] - 1))
    commands = [own, *readme("sh")]
    for text in commands:
        words = text.replace("\\\n", " ").partition("-m examples.finetune ")[2]
        words = words.partition("\n")[0].partition("#")[0].replace("'", " ")
        found = config.parse(words.split())
        checks.check_options(found)
        assert found.distributed or found.num_processes
        assert found.output == pathlib.Path("/shared/run")
    assert len(commands) == 4


def test_the_settings_do_not_include_how_a_run_is_started() -> None:
    names = {"coordinator", "num_processes", "process_id", "distributed"}
    assert names <= config.FREE_SETTINGS


def test_processes_must_have_the_same_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [{"--steps": 4, "--model": "a"}, {"--steps": 5, "--model": "a"}]
    monkeypatch.setattr(hosts, "gathered", lambda value: [value, told[1]])
    with pytest.raises(InputError, match=r"--steps is 4 on process 0 and 5 on proc"):
        hosts.check_alike(told[0])


def test_a_mistake_on_one_process_ends_both(place: pathlib.Path) -> None:
    mistake = ("--task-eval-file", "/nowhere/x.jsonl")
    made = processes.run(place, "new", 2, 2, mesh="fsdp=2", own={1: mistake})
    assert [ended.status for ended in made.ended] == [2, 2], made.ended
    reason = "/nowhere/x.jsonl does not exist; a JSONL file is needed."
    last = [ended.errors.strip().splitlines()[-1] for ended in made.ended]
    assert last == [f"error: On process 1: {reason}", f"error: {reason}"]
    assert not made.path.exists()
