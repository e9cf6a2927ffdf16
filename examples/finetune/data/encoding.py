"""Converts rows to tokens, and marks those that the model learns to write.

The loss is on the assistant's turns with their end-of-turn token, on completions with
the end-of-text token, and on every token of plain text. `examples.finetune.data.rows`
describes the forms of rows.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from examples.finetune.command.errors import InputError
from examples.finetune.data.rows import row_form

_log = logging.getLogger(__name__)


class ChatTokenizer(Protocol):
    """The methods of a tokenizer that this module uses.

    `examples.finetune.model.tokenizer` has the implementation.
    """

    eos_id: int
    stop_ids: frozenset[int]
    beginning: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with special tokens recognised and none added."""
        ...

    def encode_from_start(self, text: str) -> list[int]:
        """Returns the ids of a text that begins here, preceded by `beginning`."""
        ...

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Returns messages in the model's chat template."""
        ...


@dataclasses.dataclass(frozen=True)
class Example:
    """One tokenised row.

    Args:
      prompt_ids: the tokens before the last answer, from which greedy decoding starts;
        empty for plain text.
      ids: all tokens up to the last one that carries loss.
      loss: for each token of `ids`, whether the model learns to write it.
      completion: the text of the last answer; empty for plain text.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    loss: tuple[bool, ...]
    completion: str


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: ChatTokenizer,
    max_length: int,
    source_name: str,
) -> list[Example]:
    """Tokenises rows and marks the tokens that carry loss.

    Args:
      rows: rows of one form, from `read_rows` or `word_problems.problems`.
      tokenizer: the model's tokenizer.
      max_length: the most tokens of an example, at least 2. Longer rows are omitted
        and their number is logged as a warning, since cut answers would teach the
        model to stop early or never. Plain text is cut into pieces instead.
      source_name: the name of the rows in messages; for a file, its path.

    Returns:
      The examples in the order of the rows.

    Raises:
      InputError: every row is too long, a row (identified by its line) has no token to
        learn, or a chat template renders earlier turns differently once later ones
        follow, so that the assistant's tokens cannot be identified.
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, got {max_length}")
    examples = []
    for number, row in enumerate(rows, 1):
        try:
            example = _encode(row, tokenizer)
            if not any(example.loss[1:]):
                raise InputError(
                    "it has no token to learn; the first one is only given"
                )
        except InputError as error:
            reason = str(error).rstrip(".")
            raise InputError(f"Line {number} of {source_name}: {reason}.") from None
        if "text" in row:
            examples += _pieces(example, max_length, tokenizer.beginning)
        else:
            examples.append(example)
    kept = [example for example in examples if len(example.ids) <= max_length]
    if not kept:
        shortest = min((len(example.ids) for example in examples), default=0)
        raise InputError(
            f"{source_name} has no row of at most {max_length} tokens; its shortest has"
            f" {shortest}."
        )
    if len(kept) < len(examples):
        _log.warning(
            "%s: %d of %d rows are longer than %d tokens and left out",
            source_name,
            len(examples) - len(kept),
            len(examples),
            max_length,
        )
    return kept


def _encode(row: Mapping[str, Any], tokenizer: ChatTokenizer) -> Example:
    form = row_form(row)
    if form == "messages":
        return _encode_chat(row["messages"], tokenizer)
    if form == "question/answer":
        turns = (("user", row["question"]), ("assistant", row["answer"]))
        messages = [{"role": role, "content": content} for role, content in turns]
        return _encode_chat(messages, tokenizer)
    if form == "text":
        ids = tuple(tokenizer.encode_from_start(row["text"]))
        return Example((), ids, (True,) * len(ids), "")
    prompt, completion = row["prompt"], row["completion"]
    ids = tokenizer.encode_from_start(prompt)
    learned = following(ids, prompt, prompt + completion, tokenizer)
    learned = [*learned, tokenizer.eos_id]
    loss = (False,) * len(ids) + (True,) * len(learned)
    return Example(tuple(ids), (*ids, *learned), loss, completion)


def _encode_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: ChatTokenizer
) -> Example:
    """Tokenises up to the start and the end of each assistant turn.

    The loss is on the tokens in between. Prompts are tokenised separately, as when the
    model answers.
    """
    ids, loss, text, answer_start, completion = [], [], "", 0, ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.chat(messages[:turn], add_generation_prompt=True)
        through = tokenizer.chat(messages[: turn + 1])
        if not (prompt.startswith(text) and through.startswith(prompt)):
            raise InputError(
                "it cannot be split into turns: the model's chat template renders the"
                f" messages before message {turn} differently once it follows"
            )
        given = following(ids, text, prompt, tokenizer)
        ids, loss = ids + given, loss + [False] * len(given)
        answer = following(ids, prompt, through, tokenizer)
        answer_start, completion, text = len(ids), message["content"], through
        ids, loss = ids + answer, loss + _answer_loss(answer, tokenizer.stop_ids)
    end = max((place for place, learn in enumerate(loss) if learn), default=-1) + 1
    return Example(
        tuple(ids[:answer_start]), tuple(ids[:end]), tuple(loss[:end]), completion
    )


def _answer_loss(answer: Sequence[int], stop_ids: frozenset[int]) -> list[bool]:
    """Returns True up to the end-of-turn token, after which the template adds more."""
    stops = [place for place, token in enumerate(answer) if token in stop_ids]
    learned = stops[-1] + 1 if stops else len(answer)
    return [place < learned for place in range(len(answer))]


def following(
    ids: Sequence[int], text: str, longer: str, tokenizer: ChatTokenizer
) -> list[int]:
    """Returns the tokens of `longer` that follow `ids`, those of its beginning `text`.

    The remaining text is tokenised separately only if a token would cross the boundary,
    because tokenizers of the SentencePiece family put a space before every text.
    """
    for whole in (tokenizer.encode(longer), tokenizer.encode_from_start(longer)):
        if whole[: len(ids)] == list(ids):
            return whole[len(ids) :]
    return tokenizer.encode(longer[len(text) :])


def _pieces(
    example: Example, length: int, beginning: tuple[int, ...]
) -> Iterator[Example]:
    """Cuts plain text into pieces. A last piece of one token is omitted.

    Every piece begins like a text, since models that were trained with a first token
    predict badly without it.
    """
    ids = example.ids[len(beginning) :]
    room = length - len(beginning)
    for start in range(0, max(len(ids) - 1, 1), room):
        piece = (*beginning, *ids[start : start + room])
        yield Example((), piece, (True,) * len(piece), "")
