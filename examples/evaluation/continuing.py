"""Greedy continuation of texts up to stop strings.

The decoder ends at token ids, not at strings. Texts are therefore continued in pieces
and checked after each, and finished texts leave the batch. Each piece reads the text so
far again, in one pass.
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
from examples.finetune.command.errors import InputError
from examples.finetune.evaluation import generate
from examples.finetune.model.tokenizer import Tokenizer

# Tokens per piece. The number is compiled in, so it must not depend on the task.
PIECE = 64


class Going(NamedTuple):
    """A text in progress: its index, its prompt and the new tokens."""

    number: int
    prompt: list[int]
    written: list[int]

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return len(self.prompt) + len(self.written)


def continuations(
    placed: Placed,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    most: int,
    advance: Advance,
) -> list[str]:
    """Continues prompts with the most likely tokens.

    Args:
      placed: the model.
      prompts: nonempty sequences of token ids; cut on the left to leave room in the
        window for `most` more.
      stops: a text ends before the first of these strings, or at the model's own stop
        tokens.
      most: longest continuation in tokens, at least 1.
      advance: called with the number of texts that have finished.

    Returns:
      The text of each continuation.

    Raises:
      InputError: the window has no room for `most` tokens and a prompt.
    """
    room = placed.window - most
    if room < 1:
        raise InputError(
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
    """Returns the text before the first stop string; empty strings are ignored."""
    return min(
        (text.partition(stop)[0] for stop in stops if stop), key=len, default=text
    )


def stop_tokens(tokenizer: Tokenizer, stops: Sequence[str]) -> set[int]:
    """Returns the tokens that equal a stop string, at which decoding can end.

    Only the text before such a token is needed, so nothing is lost. Tokens that contain
    more than the string, such as a space before it, are excluded.
    """
    before = "a"
    ids = {stop: tokenizer.encode(stop) for stop in stops if stop}
    return {
        stop_ids[0]
        for stop, stop_ids in ids.items()
        if len(stop_ids) == 1
        # Decoding omits special tokens.
        and tokenizer.decode([*tokenizer.encode(before), *stop_ids])
        in (before + stop, before)
    }
