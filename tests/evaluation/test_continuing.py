"""Continuations up to stop strings, against the decoder's output, cut afterwards."""

import dataclasses

import jax
import pytest

from examples.evaluation.batching import Placed
from examples.evaluation.continuing import PIECE, continuations, stop_tokens, until
from examples.finetune.evaluation import generate
from examples.finetune.model.tokenizer import Tokenizer

PROMPTS = [list(b"a"), list(b"Once upon a time"), list(b"1 + 1 ="), list(b"xyz") * 11]
MOST = PIECE + 20


@pytest.fixture(scope="module")
def roomy(placed: Placed) -> Placed:
    return dataclasses.replace(placed, rows=3, window=MOST + 16)


@pytest.fixture(scope="module")
def free(roomy: Placed) -> list[str]:
    """The decoder's output for all tokens at once."""
    written = generate.answers(
        roomy.graph,
        roomy.params,
        [prompt[-16:] for prompt in PROMPTS],
        roomy.place,
        batch_size=len(PROMPTS),
        max_new_tokens=MOST,
        stop_ids=roomy.tokenizer.stop_ids,
    )
    return [roomy.tokenizer.decode(ids) for ids in written]


def firsts(text: str) -> list[int]:
    """Returns the positions where two characters occur together for the first time."""
    return [
        place
        for place in range(len(text) - 1)
        if text.find(text[place:][:2]) == place and "\ufffd" not in text[place:][:2]
    ]


def test_equals_greedy_decoding_cut_at_the_first_stop_string(
    roomy: Placed, free: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    # One stop string occurs in the first piece of a text, one in the second of another.
    early, late = firsts(free[2])[0], firsts(free[0])[-1]
    stops = [free[2][early:][:2], free[0][late:][:2], "never written"]
    done: list[int] = []
    with jax.log_compiles(), caplog.at_level("WARNING"):
        found = continuations(roomy, PROMPTS, stops, MOST, done.append)
    expected = []
    for text in free:
        cuts = [text.index(stop) for stop in stops if stop in text]
        expected.append(text[: min(cuts)] if cuts else text)
    assert found == expected
    # The texts include ones cut early, cut late, and of the greatest length.
    assert len(expected[2]) < 10
    assert PIECE < len(expected[0]) < len(free[0])
    assert expected[3] == free[3]
    assert sum(done) == len(PROMPTS)
    compiled = [
        record.message
        for record in caplog.records
        if record.message.startswith("Compiling jit(decode)")
    ]
    # Prompts have up to 16 tokens, and up to 80 with the new piece.
    assert 1 <= len(compiled) <= 2, compiled


def test_a_window_without_room_is_an_error(roomy: Placed) -> None:
    with pytest.raises(ValueError, match=r"max_gen_toks must be below 100.* got 100"):
        continuations(roomy, PROMPTS, [], roomy.window, id)


def test_until_cuts_at_the_first_stop_string() -> None:
    assert until("one two three", ["three", "tw", "", "x"]) == "one "
    assert until("one", []) == "one"


def test_stop_strings_that_are_one_token_end_decoding(tokenizer: Tokenizer) -> None:
    (newline,), (end,) = tokenizer.encode("\n"), tokenizer.encode("<|end|>")
    stops = ["\n", "<|end|>", "two", ""]
    assert stop_tokens(tokenizer, stops) == {newline, end}


class SpacesBefore:
    """A tokenizer like SentencePiece, where a text's first word begins with a space."""

    def encode(self, text: str) -> list[int]:
        return [{"a": 1, "b": 2}[text]]

    def decode(self, ids: list[int]) -> str:
        return " ".join({1: "a", 2: "b"}[index] for index in ids)


def test_a_token_with_a_space_before_the_string_is_no_stop_token() -> None:
    assert stop_tokens(SpacesBefore(), ["b"]) == set()
