import json
import pathlib

import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.data.rows import read_rows


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def write(path: pathlib.Path, *lines: object) -> pathlib.Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [turn("user", "a"), turn("assistant", "b")], "id": 3},
        {"question": "a", "answer": "ü"},
        {"prompt": "", "completion": "b"},
        {"text": "a\nb"},
    ],
)
def test_rows_come_as_they_stand(tmp_path, row):
    path = write(tmp_path / "rows.jsonl", row, row)
    assert read_rows(path) == read_rows(str(path)) == [row, row]


def test_line_ends_byte_order_mark_and_blank_end_are_no_trouble(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "\xc3\xbc"}\r\n\r\n \n')
    assert read_rows(path) == [{"text": "a"}, {"text": "ü"}]


GOOD = json.dumps({"question": "a", "answer": "b"}).encode()
BAD_LINES = {
    b'{"question": "a", "answer"': "not valid JSON .*column 27",
    b'"text"': "must be a JSON object, got a string",
    b"[1]": "must be a JSON object, got a list",
    b"": "it is blank",
    b'{"question": "\xff", "answer": "b"}': r"not UTF-8 text \(byte 15\)",
    b"[" * 100_000: "nested too deeply",
    b'{"question": "a", "answer": ' + b"1" * 5000 + b"}": "not usable JSON",
    b'{"question": "a"}': "needs the .*; its fields are 'question'",
    b"{}": "needs the fields .*; its fields are none",
    b'{"text": "a"}': "has the form text, but line 1 has question/answer",
    b'{"question": "a", "answer": "b", "text": "c"}': "question/answer and text",
    b'{"question": 1, "answer": "b"}': "its field 'question' is no string but 1",
    b'{"question": "a", "answer": null}': "its field 'answer' is no string but null",
    b'{"question": "a", "answer": " "}': "an empty 'answer'",
    b'{"question": "a", "answer": "\\ud800"}': "half a surrogate pair",
}


@pytest.mark.parametrize(
    ("line", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES))
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(InputError, match=message) as error:
        read_rows(path)
    assert str(error.value).startswith(f"Line 2 of {path}: it")
    assert str(error.value).endswith(".")


BAD_MESSAGES = [
    ("hello", "'messages' that are no list but a string"),
    ([], "no assistant message"),
    (["hello"], "a message 0 that is no object"),
    ([{"content": "a"}], "a message 0 with role None, allowed are system, user, assis"),
    ([turn("tool", "a")], "a message 0 with role 'tool'"),
    ([turn("user", "a"), turn("assistant", None)], "content of message 1 is .* null"),
    ([turn("user", "a"), turn("assistant", "")], "no assistant message, or an empty"),
    ([turn("user", "a")], "no assistant message"),
    ([turn("assistant", "a"), turn("user", "a")], "begins with the assistant's"),
]


@pytest.mark.parametrize(("messages", "message"), BAD_MESSAGES)
def test_bad_messages_are_named(tmp_path, messages, message):
    path = write(tmp_path / "rows.jsonl", {"messages": messages})
    with pytest.raises(InputError, match=message):
        read_rows(path)


def test_a_file_that_is_none_is_refused(tmp_path):
    for content in (b"", b"\n \n"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=r"empty\.jsonl is empty"):
            read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="is not a file"):
        read_rows(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    # A root user may read anything, so the refusal itself is made up.
    path = write(tmp_path / "rows.jsonl", {"text": "a"})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(InputError, match=r"rows\.jsonl cannot be read: Permission den"):
        read_rows(path)


def test_a_line_of_50_megabytes_is_refused_unread(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b'\n{"text": "' + b"a" * 50_000_000 + b'"}')
    with pytest.raises(InputError, match=r"Line 2 of .* longer than 4,000,000 bytes"):
        read_rows(path)
