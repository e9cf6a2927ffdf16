"""README.md: its length, its snippet and its commands."""

import pathlib
import re
import shlex

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Returns the code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 900


def test_the_snippet_runs() -> None:
    (snippet,) = blocks("python")
    names: dict = {}
    exec(snippet, names)
    for name, size in {"hidden": 32, "out": 16}.items():
        start = names["normal"](names["params"][name].shape)
        assert (names["params"][name] != start).sum() == int(0.15 * size)


def test_the_commands_work_with_any_supported_python() -> None:
    commands = [shlex.split(block) for block in blocks("sh") if "venv" in block]
    assert len(commands) == 2
    for command in commands:
        assert command[:4] == ["python3", "-m", "venv", ".venv"]
        assert ".venv/bin/pip" in command
        module = command[command.index("-m", 4) + 1]
        assert module in ("pytest", "examples.finetune")


def test_links_have_targets() -> None:
    root = pathlib.Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)", README):
        if not target.startswith("https://"):
            assert (root / target).exists(), target
