"""Texts that the base model generates, which represent its knowledge.

They are generated once and stored in the run directory. A third of them begin with the
token that begins a text. A third are conversations in the model's chat template, in
which the model generates the user's turn as well as its own. A third continue the
openings in `openings.txt`, which are of many kinds, because knowledge that the texts do
not show is not represented. Every token is sampled from the model's predictions. Texts
that share a passage with those on which forgetting is measured are discarded.
"""

import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch, padded, round_up
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import generate
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.storage import checksums
from examples.finetune.system import hosts
from examples.finetune.system.files import read_json, write_json

FILE = "own_text.json"
# Each line begins a text. In it, a backslash and "n" stand for a line break.
OPENINGS = pathlib.Path(__file__).with_name("openings.txt")
# Number of rows decoded at a time.
ROWS = 32
# Texts that share this many consecutive tokens with a measured text are discarded.
PASSAGE = 16
# Most rounds of generation, if texts are empty or discarded.
ROUNDS = 20

Place = Callable[[Batch], dict[str, jax.Array]]


class Text(NamedTuple):
    """One text.

    Attributes:
      ids: its tokens.
      given: the number of first tokens that the model did not generate.
    """

    ids: list[int]
    given: int

    @property
    def example(self) -> Example:
        """The text as an example, of which the model learns what it generated."""
        loss = tuple(place >= self.given for place in range(len(self.ids)))
        return Example((), tuple(self.ids), loss, "")


class Writer(NamedTuple):
    """Generates texts.

    Attributes:
      graph: the base model's structure.
      params: its parameters.
      tokenizer: the tokenizer, for special tokens and the chat template.
      place: a function that puts a batch on the devices.
      length: the most tokens of a text.
      seed: seed of the samples.
      row_multiple: the mesh needs batches of a multiple of this many rows.
    """

    graph: nnx.GraphDef
    params: Any
    tokenizer: Tokenizer
    place: Place
    length: int
    seed: int
    row_multiple: int = 1

    def texts(self, count: int, measured: Sequence[Sequence[int]] = ()) -> list[Text]:
        """Generates texts.

        Args:
          count: the number of texts.
          measured: the tokens of the texts on which forgetting is measured.

        Raises:
          InputError: the model generates too few nonempty texts.
        """
        passages = {passage for ids in measured for passage in _passages(ids)}
        kept: list[Text] = []
        key = jax.random.key(self.seed)
        for number in range(ROUNDS):
            missing = count - len(kept)
            if not missing:
                return kept
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            drawn = self._beginnings((missing + 2) // 3, keys[0])
            drawn += self._conversations((missing + 1) // 3, keys[1])
            drawn += self._openings(missing // 3, keys[2])
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
        prompt = [self._first()]
        written = self._continue([prompt] * count, self.length - 1, key)
        return [Text(prompt + ids, 1) for ids in written]

    def _openings(self, count: int, key: jax.Array) -> list[Text]:
        if not count:
            return []
        first = self._first()
        lines = OPENINGS.read_text("utf-8").splitlines()
        order = np.asarray(jax.random.permutation(key, len(lines)))
        prompts = []
        for number in range(count):
            line = lines[order[number % len(lines)]].replace("\\n", "\n")
            prompts.append([first, *self.tokenizer.encode(line)])
        prompts = [prompt for prompt in prompts if len(prompt) < self.length]
        if not prompts:
            return self._beginnings(count, key)
        return [
            Text((prompt + ids)[: self.length], len(prompt))
            for prompt, ids in zip(
                prompts, self._continue(prompts, self.length, key), strict=True
            )
        ]

    def _first(self) -> int:
        first = self.tokenizer.bos_id
        return self.tokenizer.eos_id if first is None else first

    def _conversations(self, count: int, key: jax.Array) -> list[Text]:
        opening = self._opening()
        if opening is None or not count:
            return self._beginnings(count, key) if count else []
        user, answer = jax.random.split(key)
        # Each of the two turns has half of the remaining length.
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
        """Returns the tokens before a user's message; None without a chat template."""
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
    """Returns the texts of a run directory, generated if there are none.

    Args:
      run: the run directory.
      writer: generates the texts.
      count: the number of texts.
      measured: as for `Writer.texts`.

    Raises:
      InputError: the file of the texts is damaged.
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
    """Returns texts as the rows of one batch.

    Returns:
      `tokens`, `segments` and `positions` as in `batches.training_batches`, and
      `loss_mask`, which is true for tokens that the model generated.
    """
    return padded([text.example for text in texts], len(texts), length)
