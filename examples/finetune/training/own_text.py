"""Texts that the base model writes itself, which stand for what it knows.

They are written once and kept in the run directory. Half of them begin at the token
that begins a text; the others are conversations in the model's chat template, of which
the model writes the user's turn as well as its own. Every token is drawn as the model
predicts it, so the texts are distributed as its own predictions are. None of them has a
passage in common with the texts on which forgetting is measured.
"""

import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch, round_up
from examples.finetune.evaluation import generate
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.storage import checksums
from examples.finetune.system import hosts
from examples.finetune.system.files import read_json, write_json

FILE = "own_text.json"
# Rows decoded at a time.
ROWS = 32
# A text that has so many tokens in a row in common with a measured one is left out.
PASSAGE = 16
# Rounds of writing, in case texts are empty or left out.
ROUNDS = 20

Place = Callable[[Batch], dict[str, jax.Array]]


class Text(NamedTuple):
    """One text.

    Attributes:
      ids: its tokens.
      given: how many of the first ones the model did not write.
    """

    ids: list[int]
    given: int


class Writer(NamedTuple):
    """What writes texts.

    Attributes:
      graph: the base model's structure.
      params: its parameters.
      tokenizer: for the tokens that begin and end a text, and the chat template.
      place: puts a batch on the devices.
      length: the most tokens of a text.
      seed: decides what is drawn.
      row_multiple: batches get a multiple of this many rows, for the mesh.
    """

    graph: nnx.GraphDef
    params: Any
    tokenizer: Tokenizer
    place: Place
    length: int
    seed: int
    row_multiple: int = 1

    def texts(self, count: int, measured: Sequence[Sequence[int]] = ()) -> list[Text]:
        """Writes texts.

        Args:
          count: how many.
          measured: the tokens of the texts on which forgetting is measured.

        Raises:
          InputError: the model writes nothing but empty texts.
        """
        passages = {passage for ids in measured for passage in _passages(ids)}
        kept: list[Text] = []
        key = jax.random.key(self.seed)
        for number in range(ROUNDS):
            missing = count - len(kept)
            if not missing:
                return kept
            first, second = jax.random.split(jax.random.fold_in(key, number))
            drawn = self._beginnings((missing + 1) // 2, first)
            drawn += self._conversations(missing // 2, second)
            kept += [
                text
                for text in drawn
                if len(text.ids) > text.given + 1
                and passages.isdisjoint(_passages(text.ids))
            ]
        raise InputError(
            f"The base model wrote {len(kept)} texts of its own where {count} are "
            "needed, and else empty ones; ask for fewer, or for longer sequences"
        )

    def _beginnings(self, count: int, key: jax.Array) -> list[Text]:
        first = self.tokenizer.bos_id
        prompt = [self.tokenizer.eos_id if first is None else first]
        written = self._continue([prompt] * count, self.length - 1, key)
        return [Text(prompt + ids, 1) for ids in written]

    def _conversations(self, count: int, key: jax.Array) -> list[Text]:
        opening = self._opening()
        if opening is None or not count:
            return self._beginnings(count, key) if count else []
        user, answer = jax.random.split(key)
        # Half of the room that is left for each of the two turns.
        room = (self.length - len(opening)) // 2
        if room < 2:
            return self._beginnings(count, key)
        asked = self._continue([opening] * count, room, user, keep_stop=False)
        questions = [self.tokenizer.decode(ids).strip() for ids in asked]
        turns = [[{"role": "user", "content": question}] for question in questions]
        prompts = [
            self.tokenizer.encode(self.tokenizer.chat(turn, add_generation_prompt=True))
            for turn in turns
        ]
        prompts = [
            prompt
            for prompt, question in zip(prompts, questions, strict=True)
            if question and len(prompt) < self.length
        ]
        if not prompts:
            return []
        answers = self._continue(prompts, self.length, answer)
        return [
            Text((prompt + ids)[: self.length], len(opening))
            for prompt, ids in zip(prompts, answers, strict=True)
        ]

    def _opening(self) -> list[int] | None:
        """The tokens before the content of a user's message; None without template."""
        mark = "CONTENT"
        try:
            text = self.tokenizer.chat([{"role": "user", "content": mark}])
        except InputError:
            return None
        before, found, _ = text.partition(mark)
        return self.tokenizer.encode(before) if found and before else None

    def _continue(
        self,
        prompts: list[list[int]],
        most: int,
        key: jax.Array,
        *,
        keep_stop: bool = True,
    ) -> list[list[int]]:
        return generate.answers(
            self.graph,
            self.params,
            prompts,
            self.place,
            # Few shapes, since each is compiled.
            batch_size=round_up(ROWS, self.row_multiple),
            max_new_tokens=most,
            stop_ids=self.tokenizer.stop_ids,
            length=1 if most == self.length - 1 else self.length,
            key=key,
            keep_stop=keep_stop,
        )


def _passages(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for start in range(len(ids) - PASSAGE + 1):
        yield tuple(ids[start : start + PASSAGE])


def kept(
    run: pathlib.Path,
    writer: Writer,
    count: int,
    measured: Collection[Sequence[int]],
) -> list[Text]:
    """The texts of a run directory, written if there are none.

    Args:
      run: the run directory.
      writer: writes them.
      count: how many.
      measured: as for `Writer.texts`.

    Raises:
      InputError: the file that keeps them is damaged.
    """
    path = run / FILE
    kept = hosts.by_first(lambda: read_json(path))
    if kept is None:
        texts = writer.texts(count, [*measured])
        decode = writer.tokenizer.decode
        rows = [{**text._asdict(), "text": decode(text.ids)} for text in texts]
        kept = {"checksum": checksums.of_json(rows), "texts": rows}
        hosts.by_first(lambda: write_json(path, kept))
    rows = kept.get("texts")
    if kept.get("checksum") != checksums.of_json(rows) or not rows:
        raise InputError(f"{path} is damaged; remove it and it is written again")
    if len(rows) != count:
        raise InputError(f"{path} has {len(rows)} texts and {count} are needed")
    return [Text(row["ids"], row["given"]) for row in rows]


def batch(texts: Sequence[Text], length: int) -> Batch:
    """Texts as the rows of one batch.

    Returns:
      `tokens`, `segments` and `positions` as `batches.training_batches` describes them,
      and `loss_mask`, which is true for what the model wrote.
    """
    made = {
        "tokens": np.zeros((len(texts), length), np.int32),
        "loss_mask": np.zeros((len(texts), length), bool),
        "segments": np.zeros((len(texts), length), np.int32),
        "positions": np.zeros((len(texts), length), np.int32),
    }
    for row, text in enumerate(texts):
        used = len(text.ids)
        made["tokens"][row, :used] = text.ids
        made["loss_mask"][row, text.given : used] = True
        made["segments"][row, :used] = 1
        made["positions"][row, :used] = np.arange(used)
    return made
