import json
import pathlib
from typing import Any

import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.model.pretrained import Source
from examples.finetune.model.tokenizer import Tokenizer
from tests.finetune import logits, tiny

MESSAGES = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
]


def test_the_default_tokenizer_gives_the_ids_that_transformers_gives(
    default_source: Source,
) -> None:
    for prompt in logits.load()["default"]:
        assert default_source.tokenizer.encode(prompt["text"]) == prompt["ids"]


def test_the_default_tokenizer_splits_digits_and_gives_the_text_back(
    default_source: Source,
) -> None:
    tokenizer = default_source.tokenizer
    text = "7,203 = 12\n  na\u00efve \U0001f642\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    digits = [
        token for token in ids if any(map(str.isdigit, tokenizer.decode([token])))
    ]
    assert "".join(tokenizer.decode([token]) for token in digits) == "720312"
    assert len(digits) == 6


def test_the_default_chat_template_and_special_tokens(default_source: Source) -> None:
    tokenizer = default_source.tokenizer
    system = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n"
    )
    user = "<|im_start|>user\nHello!<|im_end|>\n"
    opening = "<|im_start|>assistant\n"
    prompt = tokenizer.chat(MESSAGES[:1], add_generation_prompt=True)
    assert prompt == system + user + opening
    assert tokenizer.chat(MESSAGES) == prompt + "Hi.<|im_end|>\n"
    assert tokenizer.encode("<|im_start|>Hi<|im_end|>")[::2] == [1, 2]
    assert tokenizer.decode(tokenizer.encode("<|im_start|>Hi<|im_end|>")) == "Hi"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.stop_ids == {2}
    assert tokenizer.vocab_size == 49152


def tiny_tokenizer(directory: pathlib.Path, **settings: Any) -> Tokenizer:
    """Writes the tiny model's tokenizer with settings changed, and reads it."""
    tiny.write_model(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return Tokenizer.from_directory(directory)


def test_a_directory_says_which_tokens_begin_end_and_stop(
    tmp_path: pathlib.Path,
) -> None:
    tiny.write_model(tmp_path)
    ids = json.dumps({"eos_token_id": [258, 256]})
    (tmp_path / "generation_config.json").write_text(ids)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (256, 258, 258)
    assert tokenizer.stop_ids == {258, 256}
    assert tokenizer.vocab_size == 259


def test_the_end_of_a_turn_stops_an_answer(tmp_path: pathlib.Path) -> None:
    # As of base models, whose texts end with another token than their chats' turns.
    tokenizer = tiny_tokenizer(tmp_path, eos_token="<|begin|>")
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (256, {256, 258})
    tokenizer = tiny_tokenizer(tmp_path, eos_token="<|begin|>", chat_template="fixed")
    assert tokenizer.stop_ids == {256}


def test_a_file_with_truncation_and_padding_encodes_whole_texts(
    tmp_path: pathlib.Path,
) -> None:
    expected = tiny_tokenizer(tmp_path).encode("123456")
    core = tiny.tokenizer()
    core.enable_truncation(4)
    core.enable_padding(length=8)
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("123456") == expected
    assert len(expected) == 6


@pytest.mark.parametrize("listed", [False, True])
def test_added_tokens_without_an_embedding_are_omitted(
    tmp_path: pathlib.Path, listed: bool
) -> None:
    tiny.write_model(tmp_path)
    core = tiny.tokenizer()
    plain = core.encode("<image>").ids
    core.add_special_tokens(["<image>"])
    assert core.encode("<image>").ids == [259]
    described = json.loads(core.to_str())
    if listed:
        added = {token["content"]: token["id"] for token in described["added_tokens"]}
        described["model"]["vocab"] |= added
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = Tokenizer.from_directory(tmp_path, size=259)
    assert tokenizer.encode("<image>") == plain
    assert tokenizer.encode("<|end|>") == [258]
    assert tokenizer.vocab_size == 259


def test_a_text_begins_after_the_end_of_another_if_no_token_begins_it() -> None:
    named = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    assert Tokenizer(tiny.tokenizer(), named).first_id == 256
    del named["bos_token"]
    assert Tokenizer(tiny.tokenizer(), named).first_id == 258


def test_saving_and_reading_changes_nothing(
    tmp_path: pathlib.Path, default_source: Source
) -> None:
    first = default_source.tokenizer
    first.save(tmp_path)
    second = Tokenizer.from_directory(tmp_path)
    text = first.chat(MESSAGES, add_generation_prompt=True)
    assert second.chat(MESSAGES, add_generation_prompt=True) == text
    assert second.encode(text) == first.encode(text)
    assert second.decode(first.encode(text)) == first.decode(first.encode(text))
    for name in ("bos_id", "eos_id", "pad_id", "stop_ids", "vocab_size"):
        assert getattr(second, name) == getattr(first, name)


def test_what_is_saved_names_tokens_by_their_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "saved").mkdir()
    tiny_tokenizer(tmp_path / "model", model_max_length=128).save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings == {
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": tiny.TEMPLATE,
        "model_max_length": 128,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def test_a_template_in_its_own_file_wins(tmp_path: pathlib.Path) -> None:
    tiny.write_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert Tokenizer.from_directory(tmp_path).chat(MESSAGES) == "Hello!"


def test_of_several_templates_the_default_one_is_taken(tmp_path: pathlib.Path) -> None:
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ messages | length }}"},
    ]
    assert tiny_tokenizer(tmp_path, chat_template=templates).chat(MESSAGES) == "2"


def test_blocks_are_trimmed_as_templates_expect(tmp_path: pathlib.Path) -> None:
    template = (
        "{% for m in messages %}\n  {% if loop.first %}\nA\n  {% endif %}\nB\n"
        "{% endfor %}"
    )
    tokenizer = tiny_tokenizer(tmp_path, chat_template=template)
    assert tokenizer.chat(MESSAGES) == "A\nB\nB\n"


def test_a_template_may_mark_what_the_assistant_says_and_write_json(
    tmp_path: pathlib.Path,
) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m['content'] | tojson }}"
        "{% endgeneration %}{% endfor %}{{ [1] | tojson(indent=1) }}"
    )
    tokenizer = tiny_tokenizer(tmp_path, chat_template=template)
    chat = [{"role": "user", "content": "a<b & \u00e9 'x'"}]
    assert tokenizer.chat(chat) == "\"a<b & \u00e9 'x'\"[\n 1\n]"


def test_no_template_sees_the_date(tmp_path: pathlib.Path) -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}."
    assert tiny_tokenizer(tmp_path, chat_template=template).chat(MESSAGES) == "."


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "template refuses .* unsafe"),
        ("{{ messages[0]['content'].missing.deeper }}", "template refuses"),
    ],
)
def test_a_chat_that_cannot_be_written_is_refused(
    tmp_path: pathlib.Path, template: str | None, words: str
) -> None:
    tokenizer = tiny_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(InputError, match=words):
        tokenizer.chat(MESSAGES)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eos_token": None}, "names no end-of-text token"),
        ({"eos_token": "</s>"}, "has no token '</s>' for its eos_token"),
        ({"chat_template": "{% if %}"}, "template is malformed"),
    ],
)
def test_a_malformed_tokenizer_is_refused(
    tmp_path: pathlib.Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        tiny_tokenizer(tmp_path, **settings)


def test_files_that_are_no_tokenizer_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_another_kind_of_gguf_tokenizer_is_refused() -> None:
    metadata = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.pre": "default"}
    with pytest.raises(InputError, match="bert/default is not supported"):
        Tokenizer.from_gguf(metadata)
