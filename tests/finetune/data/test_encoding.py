import itertools
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.data.encoding import Example, encode_rows
from examples.finetune.data.rows import read_rows
from examples.finetune.data.word_problems import problems

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eos|>")


class Letters:
    """A stand-in: one token a letter, the special tokens first."""

    eos_id = SPECIAL.index("<|eos|>")
    beginning: tuple[int, ...] = ()
    stop_ids = frozenset({SPECIAL.index("<|end|>"), SPECIAL.index("<|eos|>")})

    def encode(self, text: str) -> list[int]:
        parts = re.findall(r"<\|\w+\|>|.", text, re.DOTALL)
        return [SPECIAL.index(p) if p in SPECIAL else 10 + ord(p) for p in parts]

    def encode_from_start(self, text: str) -> list[int]:
        return [*self.beginning, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(SPECIAL[i] if i < 10 else chr(i - 10) for i in ids)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        turns = [f"<|{m['role']}|>{m['content']}<|end|>\n" for m in messages]
        return "".join(turns) + "<|assistant|>" * add_generation_prompt


class SpacePrefix(Letters):
    """Puts a space before whatever it encodes, as SentencePiece tokenizers do."""

    def encode(self, text: str) -> list[int]:
        return super().encode(" " + text)


class Merging(Letters):
    """Has one token, 9, for the letters ab."""

    def encode(self, text: str) -> list[int]:
        parts = [super(Merging, self).encode(part) for part in text.split("ab")]
        return list(itertools.chain(parts[0], *([9, *part] for part in parts[1:])))


class LastTurnOnly(Letters):
    """Its template drops the system's turn once an answer stands there."""

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        kept = [m for m in messages if add_generation_prompt or m["role"] != "system"]
        return super().chat(kept, add_generation_prompt=add_generation_prompt)


class NoTemplate(Letters):
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        raise InputError("The model has no chat template.")


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def learned(example: Example, tokenizer: Letters) -> str:
    pairs = zip(example.ids, example.loss, strict=True)
    return tokenizer.decode([token for token, learn in pairs if learn])


def test_a_question_is_a_chat_and_its_answer_and_end_of_turn_are_learned():
    tokenizer = Letters()
    (example,) = encode_rows([{"question": "1+1?", "answer": "2"}], tokenizer, 99, "x")
    assert tokenizer.decode(example.prompt_ids) == "<|user|>1+1?<|end|>\n<|assistant|>"
    assert tokenizer.decode(example.ids[len(example.prompt_ids) :]) == "2<|end|>"
    assert learned(example, tokenizer) == "2<|end|>"
    assert example.completion == "2"


def test_every_assistant_turn_of_a_chat_is_learned_and_nothing_else():
    tokenizer = Letters()
    messages = [
        *(turn("system", "s"), turn("user", "u"), turn("assistant", "one")),
        *(turn("user", "v"), turn("assistant", "two"), turn("user", "w")),
    ]
    (example,) = encode_rows([{"messages": messages}], tokenizer, 99, "x")
    assert tokenizer.decode(example.ids) == (
        "<|system|>s<|end|>\n<|user|>u<|end|>\n<|assistant|>one<|end|>\n"
        "<|user|>v<|end|>\n<|assistant|>two<|end|>"
    )
    assert learned(example, tokenizer) == "one<|end|>two<|end|>"
    assert example.ids[: len(example.prompt_ids)] == example.prompt_ids
    assert tokenizer.decode(example.prompt_ids).endswith("v<|end|>\n<|assistant|>")
    assert example.completion == "two"


def test_a_completion_is_joined_as_it_is_and_ends_the_text():
    tokenizer = Letters()
    row = {"prompt": "a b", "completion": " c"}
    (example,) = encode_rows([row], tokenizer, 99, "x")
    assert tokenizer.decode(example.ids) == "a b c<|eos|>"
    assert learned(example, tokenizer) == " c<|eos|>"
    assert tokenizer.decode(example.prompt_ids) == "a b"
    (alone,) = encode_rows([{"prompt": "", "completion": "c"}], tokenizer, 99, "x")
    assert (alone.prompt_ids, alone.loss) == ((), (True, True))


def test_plain_text_is_learned_whole_and_cut_into_pieces():
    tokenizer = Letters()
    rows = [{"text": "abcdefg"}, {"text": "hi"}]
    examples = encode_rows(rows, tokenizer, 3, "x")
    # The g has nothing before it in its piece that could predict it.
    assert [learned(e, tokenizer) for e in examples] == ["abc", "def", "hi"]
    assert all(e.prompt_ids == () and e.completion == "" for e in examples)


def test_pieces_are_tokenised_as_in_the_whole_text():
    tokenizer = SpacePrefix()
    rows = [{"question": "u", "answer": "v"}, {"prompt": "a", "completion": "b"}]
    chat, plain = encode_rows(rows, tokenizer, 99, "x")
    assert tokenizer.decode(chat.ids) == " <|user|>u<|end|>\n<|assistant|>v<|end|>"
    assert tokenizer.decode(plain.ids) == " ab<|eos|>"


def test_a_token_across_the_border_is_not_made():
    # When the model answers, it has the prompt's tokens and no others.
    tokenizer = Merging()
    (example,) = encode_rows([{"prompt": "xa", "completion": "by"}], tokenizer, 99, "x")
    assert example.prompt_ids == tuple(tokenizer.encode("xa"))
    assert example.ids == (*tokenizer.encode("xa"), *tokenizer.encode("by"), 4)


def test_long_rows_are_left_out_and_counted(caplog):
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (3, 9, 4, 30)]
    with caplog.at_level(logging.WARNING):
        examples = encode_rows(rows, Letters(), 6, "rows.jsonl")
    assert [len(example.ids) for example in examples] == [5, 6]
    assert caplog.messages == [
        "rows.jsonl: 2 of 4 rows are longer than 6 tokens and left out"
    ]
    with pytest.raises(InputError, match=r"rows\.jsonl has no row of at most 4 .* 5\."):
        encode_rows(rows, Letters(), 4, "rows.jsonl")
    with pytest.raises(ValueError, match="max_length must be at least 2, got 1"):
        encode_rows(rows, Letters(), 1, "rows.jsonl")


@pytest.mark.parametrize(
    ("tokenizer", "row", "message"),
    [
        (Letters(), {"text": "a"}, "it has no token to learn"),
        (
            NoTemplate(),
            {"question": "a", "answer": "b"},
            "The model has no chat template",
        ),
        (
            LastTurnOnly(),
            {
                "messages": [
                    turn("system", "s"),
                    turn("user", "u"),
                    turn("assistant", "v"),
                ]
            },
            "template renders the messages before message 2 differently",
        ),
    ],
)
def test_rows_that_cannot_be_learned_are_named(tokenizer, row, message):
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(InputError, match=message) as error:
        encode_rows([good, row], tokenizer, 99, "rows.jsonl")
    assert str(error.value).startswith("Line 2 of rows.jsonl: ")
    assert str(error.value).count(".") == 2


@pytest.fixture(scope="module")
def tokenizer(default_model_file):
    from examples.finetune.model.pretrained import DEFAULT_MODEL, open_model

    return open_model(DEFAULT_MODEL).tokenizer


def test_the_models_own_template(tokenizer):
    rows = problems(300, seed=0, split="train")
    examples = encode_rows(rows, tokenizer, 128, "word problems")
    assert len(examples) == 300
    for row, example in zip(rows, examples, strict=True):
        whole = tokenizer.chat(
            [turn("user", row["question"]), turn("assistant", row["answer"])]
        )
        # The template's line break after the last turn is left out.
        assert [*example.ids, *tokenizer.encode("\n")] == tokenizer.encode(whole)
        answer = [
            i for i, learn in zip(example.ids, example.loss, strict=True) if learn
        ]
        assert answer[-1] in tokenizer.stop_ids
        assert tokenizer.decode(answer) == row["answer"] == example.completion
        assert [*example.prompt_ids, *answer] == list(example.ids)
    lengths = np.array([len(example.ids) for example in examples])
    assert 80 < lengths.mean() < 100 and lengths.max() < 120


@pytest.mark.skipif(
    "MOFO_JAX_DATA" not in os.environ,
    reason="MOFO_JAX_DATA names no directory with gsm8k_train.jsonl and others",
)
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k_train", 7473),
        ("gsm8k_test", 1319),
        ("metamathqa_val", 1024),
        ("pmc_medical_val", 1024),
    ],
)
def test_published_files_load(tokenizer, name, count):
    rows = read_rows(pathlib.Path(os.environ["MOFO_JAX_DATA"]) / f"{name}.jsonl")
    assert len(rows) == count
    examples = encode_rows(rows[:200], tokenizer, 2048, name)
    assert len(examples) >= 195
    for example in examples:
        assert example.ids[-1] in tokenizer.stop_ids and example.loss[-1]
