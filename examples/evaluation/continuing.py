"""Greedy continuation of texts up to stop strings.

The decoder ends at token ids, not at strings, so texts are continued piece by piece
and looked at in between; whatever has ended leaves the batch. Each piece reads the text
so far again, in one pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

from examples.evaluation.batching import (
    SHORTEST,
    Advance,
    Placed,
    by_length,
    power_of_two,
)
from examples.finetune.evaluation import generate
from examples.finetune.model.tokenizer import Tokenizer

# Tokens of a piece. The number is compiled in, so it must not follow every task's wish.
PIECE = 64


class Going(NamedTuple):
    """A text that is being continued: its place, its prompt and what was written."""

    number: int
    prompt: list[int]
    written: list[int]

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.prompt) + len(self.written)


def continuations(
    placed: Placed,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    most: int,
    advance: Advance,
) -> list[str]:
    """Continues prompts by the likeliest tokens.

    Args:
      placed: the model.
      prompts: token ids, none empty; cut on the left to leave room in the window for
        `most` more.
      stops: a text ends before the first of these; the model's own stop tokens end it
        too.
      most: longest continuation in tokens, at least 1.
      advance: is told how many texts have ended.

    Returns:
      The text of each continuation.

    Raises:
      ValueError: the window has no room for `most` tokens and a prompt.
    """
    room = placed.window - most
    if room < 1:
        raise ValueError(
            f"max_gen_toks must be below {placed.window}, the model's window, got "
            f"{most}"
        )
    tokenizer = placed.tokenizer
    stop_ids = {*tokenizer.stop_ids, *stop_tokens(tokenizer, stops)}
    texts = [""] * len(prompts)
    going = [
        Going(number, list(prompt[-room:]), []) for number, prompt in enumerate(prompts)
    ]
    while going:
        unfinished = []
        for group in by_length(going, lambda text: text.length, placed.rows):
            piece = min(PIECE, power_of_two(most, SHORTEST))
            continued = generate.answers(
                placed.graph,
                placed.params,
                [text.prompt + text.written for text in group],
                placed.place,
                batch_size=placed.rows,
                max_new_tokens=piece,
                stop_ids=stop_ids,
                length=power_of_two(max(text.length for text in group), SHORTEST),
            )
            for text, ids in zip(group, continued, strict=True):
                written = (text.written + ids)[:most]
                whole = tokenizer.decode(written)
                texts[text.number] = until(whole, stops)
                ended = len(ids) < piece or len(written) == most
                if ended or texts[text.number] != whole:
                    advance(1)
                else:
                    unfinished.append(text._replace(written=written))
        going = unfinished
    return texts


def until(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings; empty ones stop nothing."""
    return min(
        (text.partition(stop)[0] for stop in stops if stop), key=len, default=text
    )


def stop_tokens(tokenizer: Tokenizer, stops: Sequence[str]) -> set[int]:
    """The tokens that are stop strings by themselves, at which decoding can end.

    Ending there loses nothing: the text before such a token is what is wanted. A token
    that says more than the string, as with a space before it, is none.
    """
    before = "a"
    ids = {stop: tokenizer.encode(stop) for stop in stops if stop}
    return {
        stop_ids[0]
        for stop, stop_ids in ids.items()
        if len(stop_ids) == 1
        # Special tokens are left out of a decoded text.
        and tokenizer.decode([*tokenizer.encode(before), *stop_ids])
        in (before + stop, before)
    }
