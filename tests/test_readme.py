"""README.md: its length, snippet and commands; of all pages: links and snippets."""

import ast
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    page
    for folder in (".", ".github", "examples/**", "tests/**")
    for page in ROOT.glob(f"{folder}/*.md")
)
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    """Returns a page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def anchors(page: pathlib.Path) -> set[str]:
    """Returns the names that links to a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)]+)", page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_are_python(page: pathlib.Path) -> None:
    for snippet in blocks("python", page.read_text()):
        ast.parse(snippet)
