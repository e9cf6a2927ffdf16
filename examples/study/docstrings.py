"""A task from the standard library: from signature and docstring to function body."""

import ast
import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Iterator

from examples.finetune.data.retention import CODE_MODULES

# Modules with text rather than code, for tests or platforms, or generated ones.
_LEFT_OUT = {
    *("__pycache__", "_pyrepl", "distutils", "encodings", "ensurepip", "idlelib"),
    *("lib2to3", "pydoc_data", "site-packages", "test", "tests", "tkinter"),
    "turtledemo",
}
REQUEST = "Write the body of this Python function."
SHORTEST = 60  # characters in a body


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of the standard library.

    Attributes:
      module: its top-level module, such as "email".
      head: its signature and docstring, without the outer indentation.
      body: the code after the docstring.
    """

    module: str
    head: str
    body: str

    def row(self) -> dict[str, str]:
        """Returns the function as a question and its answer."""
        return {"question": f"{REQUEST}\n\n{self.head}", "answer": self.body}


@functools.cache
def functions() -> tuple[Function, ...]:
    """Returns every documented function of the library, by module.

    Modules in `retention.CODE_MODULES` are excluded, because they are used to heal the
    model or to measure drift. Functions differ between versions of Python.
    """
    library = pathlib.Path(ast.__file__).parent
    used = {name.partition(".")[0] for name in CODE_MODULES}
    found: list[Function] = []
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).parts
        module = parts[0].removesuffix(".py")
        if module not in used and not _LEFT_OUT.intersection(parts):
            source = file.read_text("utf-8", errors="ignore")
            found += [Function(module, *both) for both in _documented(source)]
    return tuple(found)


def _documented(source: str) -> Iterator[tuple[str, str]]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        if not ast.get_docstring(node):
            continue
        begin, middle, end = node.lineno - 1, node.body[0].end_lineno, node.end_lineno
        text = textwrap.dedent("\n".join(lines[begin:end])).splitlines()
        count = (middle or begin) - begin
        head, body = "\n".join(text[:count]), "\n".join(text[count:]).strip("\n")
        if len(body) >= SHORTEST:
            yield head, body
