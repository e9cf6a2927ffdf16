"""Texts and questions for measuring forgetting: knowledge, prose and code.

The questions were written for this project. Prose and code come from the running
Python's own library, so nothing is downloaded. The texts differ between versions of
Python, so only compare measurements from the same version.
"""

import ast
import dataclasses
import importlib.abc
import importlib.resources
import importlib.util
import json
import re
import textwrap
from collections.abc import Iterator

# Pure Python that has been in the library for a long time and changes little.
CODE_MODULES = (
    *("base64", "bisect", "calendar", "cmd", "colorsys", "configparser", "copy"),
    *("csv", "difflib", "fnmatch", "fractions", "graphlib", "heapq", "json.decoder"),
    *("json.encoder", "pprint", "queue", "random", "reprlib", "sched", "shlex"),
    *("statistics", "string", "textwrap", "timeit", "wave"),
)
SHORTEST, LONGEST = 300, 1500  # characters of a text


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of general knowledge.

    Args:
      choices: four answers of similar form, one of which is right.
      answer: the index of the right answer.
      topic: the subject, such as "geography".
    """

    question: str
    choices: tuple[str, str, str, str]
    answer: int
    topic: str


def knowledge_questions() -> list[Question]:
    """Returns the questions of `questions.jsonl`, in the file's order."""
    file = importlib.resources.files("examples.finetune.data") / "questions.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [Question(**{**row, "choices": tuple(row["choices"])}) for row in rows]


def prose_texts() -> list[str]:
    """Returns English prose: Python's own manual, without its grammar and tables.

    Each text is one or more whole paragraphs of one topic, 300 to 1,500 characters.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    texts = []
    for name in sorted(topics):
        paragraphs = [p for p in _paragraphs(topics[name]) if p not in seen]
        # Some topics repeat parts of others.
        seen.update(paragraphs)
        texts += _joined(paragraphs)
    return texts


def code_texts() -> list[str]:
    """Returns Python code: whole functions of the standard library, 300 to 1,500
    characters each, in the order of their modules' names.

    Raises:
      RuntimeError: this Python comes without its library's source.
    """
    return [text for name in CODE_MODULES for text in _functions(_source(name))]


def _paragraphs(topic: str) -> Iterator[str]:
    """Yields the paragraphs of running text, each on one line, without markup."""
    for block in re.split(r"\n{2,}", topic):
        # Lists, code, grammar and tables are indented or begin with a mark. Headings
        # and introductions of examples do not end in a full stop.
        if not re.match(r"[A-Z*\"“][^\n]*[a-z]", block) or block.startswith("* "):
            continue
        if re.search(r"\n[ *=+-]|::=", block) or not block.endswith("."):
            continue
        if re.match(r"(Changed|Added|New|Deprecated)\b.*version|See also", block):
            continue
        line = re.sub(r"(?<=\w-)\n", "", block).replace("\n", " ")
        yield re.sub(r"\*+([^*]+)\*+|``([^`]+)``", r"\1\2", line).replace("  ", " ")


def _joined(paragraphs: list[str]) -> Iterator[str]:
    text = ""
    for paragraph in paragraphs:
        joined = f"{text}\n\n{paragraph}" if text else paragraph
        if len(joined) > LONGEST:
            yield from [text] if len(text) >= SHORTEST else []
            joined = paragraph
        text = joined
    if SHORTEST <= len(text) <= LONGEST:
        yield text


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    loader = spec.loader if spec else None
    readable = isinstance(loader, importlib.abc.InspectLoader)
    source = loader.get_source(name) if readable else None
    if source is None:
        raise RuntimeError(f"this Python has no source of its module {name}")
    return source


def _functions(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    lines = source.splitlines()
    for owner in [tree, *classes]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef):
                first = min(n.lineno for n in [node, *node.decorator_list])
                text = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
                if SHORTEST <= len(text) <= LONGEST:
                    yield text
