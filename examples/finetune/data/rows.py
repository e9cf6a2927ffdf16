"""Reads JSONL files of training rows, and reports errors by line.

A row has one of four forms, and a file has rows of one form only:

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}
    {"question": ..., "answer": ...}       like one user and one assistant turn
    {"prompt": ..., "completion": ...}     concatenated, without a chat template
    {"text": ...}                          plain text
"""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from examples.finetune.command.errors import InputError

FORMS = {
    "messages": ("messages",),
    "question/answer": ("question", "answer"),
    "prompt/completion": ("prompt", "completion"),
    "text": ("text",),
}
ROLES = ("system", "user", "assistant")
# A longer line indicates a file that is not JSONL; a tokenizer takes about a second per
# megabyte.
MAX_LINE_BYTES = 4_000_000


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a JSONL file and checks every row's form.

    Args:
      path: a UTF-8 file with one JSON object per line and no blank lines between them.
        Unknown fields are ignored.

    Returns:
      The rows; row i is on line i + 1.

    Raises:
      InputError: the file cannot be read or is empty, or a line (named by its number)
        is not JSON, has no known form, has another form than the first line, has
        fields of the wrong type or nothing to learn from, or is over 4 MB.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        reason = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {reason}; a JSONL file is needed.")
    rows, first = [], None
    try:
        for number, line in _lines(path):
            try:
                row = _parse(line)
                form = row_form(row)
                first = first or form
                if form != first:
                    raise InputError(f"it has the form {form}, but line 1 has {first}")
                _check(row, form)
            except InputError as error:
                raise InputError(f"Line {number} of {path}: {error}.") from None
            rows.append(row)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if not rows:
        raise InputError(f"{path} is empty; at least one row is needed.")
    return rows


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) without the blank lines at the end of the file."""
    blank = []
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if line.isspace():
                blank.append((number, line))
                continue
            yield from blank
            blank.clear()
            yield number, line


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    if line.isspace():
        raise InputError("it is blank")
    try:
        row = json.loads(line.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"it is not valid JSON ({error.msg}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InputError("it is JSON nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"it is not usable JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"it must be a JSON object, got {_type_name(row)}")
    return row


def row_form(row: Mapping[str, Any]) -> str:
    """Returns which of `FORMS` a row has; `InputError` unless it is exactly one."""
    forms = [form for form, fields in FORMS.items() if all(f in row for f in fields)]
    if len(forms) == 1:
        return forms[0]
    if forms:
        raise InputError(
            f"it has the fields of {' and '.join(forms)}, allowed is one form"
        )
    found = ", ".join(map(repr, row)) or "none"
    needed = ", or ".join(" and ".join(map(repr, fields)) for fields in FORMS.values())
    raise InputError(f"it needs the fields {needed}; its fields are {found}")


def _check(row: Mapping[str, Any], form: str) -> None:
    if form != "messages":
        for field in FORMS[form]:
            _check_text(row[field], f"its field {field!r}")
        learned = FORMS[form][-1]
        if not row[learned].strip():
            raise InputError(f"it has an empty {learned!r}, so nothing to learn")
        return
    messages = row["messages"]
    if not isinstance(messages, list):
        raise InputError(
            f"it has 'messages' that are no list but {_type_name(messages)}"
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(f"it has a message {index} that is no object")
        role = message.get("role")
        if role not in ROLES:
            raise InputError(
                f"it has a message {index} with role {role!r}, allowed are"
                f" {', '.join(ROLES)}"
            )
        _check_text(message.get("content"), f"the content of message {index}")
    if messages and messages[0]["role"] == "assistant":
        raise InputError(
            "it begins with the assistant's message; a user's must precede"
        )
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    if not answers or not all(answer.strip() for answer in answers):
        raise InputError(
            "it has no assistant message, or an empty one, so nothing to learn"
        )


def _check_text(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is no string but {_type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} has half a surrogate pair") from None


def _type_name(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        type(None): "null",
    }
    return names.get(type(value), repr(value))
