"""The chat: what it streams, and the command."""

import io
import pathlib

import pytest
from flax import nnx

from examples import chat
from examples.finetune.evaluation.conversation import Speaker
from examples.finetune.evaluation.streaming import stream
from examples.finetune.model import pretrained
from examples.finetune.model.pretrained import Source
from tests.finetune import small
from tests.finetune.evaluation.test_generate import NEW, PROMPTS, plainly


def test_it_streams_what_decoding_without_a_cache_gives(tiny_source: Source) -> None:
    model = pretrained.build(tiny_source)
    graph, params = nnx.split(model)
    for prompt in PROMPTS[1:]:
        wanted = plainly(model, prompt, set())
        for stops in (set[int](), {wanted[3]}):
            found = stream(graph, params, prompt, max_new_tokens=NEW, stop_ids=stops)
            assert [*found] == plainly(model, prompt, stops)


def test_a_conversation_goes_on_and_can_begin_anew(tmp_path: pathlib.Path) -> None:
    speaker = Speaker.load(str(small.write_model(tmp_path / "tiny")))
    *_, answer = ["", *speaker.answer("Hello", 5)]
    assert speaker.said == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": answer},
    ]
    assert list(speaker.answer("And then?", 5)) is not None
    assert [turn["role"] for turn in speaker.said] == ["user", "assistant"] * 2
    speaker.forget()
    assert [*speaker.answer("Hello", 5)][-1:] == ([answer] if answer else [])


def test_the_command_shows_both_models(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = small.write_model(tmp_path / "one")
    after = small.write_model(tmp_path / "other")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nHello\n"))
    options = ["--model", str(after), "--before", str(before)]
    assert chat.main([*options, "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("before: one") == shown.count("after: other") == 2


class Keyboard(io.StringIO):
    """An input that a person types."""

    def isatty(self) -> bool:
        return True


def test_a_conversation_that_has_become_too_long_can_go_on(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(small.write_model(tmp_path / "one"))
    options = ["--model", model, "--before", model, "--max-new-tokens", "3"]
    said = f"Hello\n{'long ' * 100}\nAgain\n"
    monkeypatch.setattr("sys.stdin", Keyboard(said))
    assert chat.main(options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "begin a new one with an empty line, or send a shorter message" in shown
    assert shown.count("before: one") == 3
    # Without a person, nothing else would tell that an answer is missing.
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert chat.main(options) == 2
    assert "and the context of one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model nowhere", "There is no model 'nowhere'"),
        ("--model x --max-new-tokens 0", "--max-new-tokens must be >= 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_source: Source,
    tmp_path: pathlib.Path,
    words: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = str(small.write_model(tmp_path / "tiny"))
    assert chat.main([*words.split(), "--before", tiny]) == 2
    assert message in capsys.readouterr().err
