"""Texts that the base model generates, which represent its knowledge.

They are generated once and stored in the run directory. A third of them begin with the
token that begins a text. A third are conversations in the model's chat template, in
which the model generates the user's turn as well as its own. A third continue the
openings in `openings.txt`, which are of many kinds, because knowledge that the texts do
not show is not represented. All tokens but those of openings and of the template are
sampled from the model's predictions. Texts that share a passage with those on which
forgetting is measured are discarded.
"""

import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch, padded, round_up
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import generate
from examples.finetune.model.sharding import Place
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.storage import checksums
from examples.finetune.system import hosts
from examples.finetune.system.files import read_json, write_json

FILE = "own_text.json"
# Each line begins a text. In it, a backslash and "n" stand for a line break.
OPENINGS = pathlib.Path(__file__).with_name("openings.txt")
# Most rows decoded at a time.
ROWS = 64
# Texts that share this many consecutive tokens with a measured text are discarded.
PASSAGE = 16
# Most rounds of generation, if texts are empty or discarded.
ROUNDS = 20


class Text(NamedTuple):
    """One text.

    Attributes:
      ids: its tokens.
      given: the number of tokens before the first that the model generated.
    """

    ids: list[int]
    given: int

    @property
    def example(self) -> Example:
        """The text as an example, with loss on all tokens but the first `given`."""
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
            drawn = self._drawn(missing, jax.random.fold_in(key, number))
            kept += [
                text
                for text in drawn
                if len(text.ids) > text.given + 1
                and passages.isdisjoint(_passages(text.ids))
            ]
            if len(kept) == count:
                return kept
        raise InputError(
            f"The base model wrote {len(kept)} texts of its own where {count} are "
            "needed, and else empty ones; ask for fewer, or for longer sequences"
        )

    def _drawn(self, count: int, key: jax.Array) -> list[Text]:
        """Generates texts of the three kinds in turn, some of which may be empty."""
        order, begun, answered = jax.random.split(key, 3)
        first, turn = self.tokenizer.first_id, self._turn()
        kinds = [[first]], [turn or [first]], self._openings(order)
        prompts = []
        for number in range(count):
            kind = kinds[number % len(kinds)]
            prompts.append(kind[number // len(kinds) % len(kind)])
        # All in one batch, since more rows add little to the time of a step.
        texts = self._continue(prompts, begun)
        if turn:
            texts[1 :: len(kinds)] = self._answered(texts[1 :: len(kinds)], answered)
        return texts

    def _turn(self) -> list[int] | None:
        """Returns the tokens before a user's message.

        None without a chat template, or if texts are too short for a conversation.
        """
        mark = "CONTENT"
        try:
            text = self.tokenizer.chat([{"role": "user", "content": mark}])
        except InputError:
            return None
        before, found, _ = text.partition(mark)
        ids = self.tokenizer.encode(before)
        return ids if found and ids and len(ids) + 4 <= self.length else None

    def _openings(self, key: jax.Array) -> list[list[int]]:
        """Returns the openings that leave room for two tokens, in random order."""
        first = self.tokenizer.first_id
        lines = OPENINGS.read_text("utf-8").splitlines()
        prompts = [
            [first, *self.tokenizer.encode(lines[place].replace("\\n", "\n"))]
            for place in np.asarray(jax.random.permutation(key, len(lines)))
        ]
        return [ids for ids in prompts if len(ids) + 1 < self.length] or [[first]]

    def _answered(self, asked: Sequence[Text], key: jax.Array) -> list[Text]:
        """Returns conversations of users' turns and the model's answers.

        Where a turn is empty, or leaves no room, so is the conversation.
        """
        prompts = [self._conversation(text) for text in asked]
        going = [prompt for prompt in prompts if prompt]
        answers = iter(self._continue(going, key) if going else [])
        return [
            Text(next(answers).ids if prompt else [], text.given)
            for prompt, text in zip(prompts, asked, strict=True)
        ]

    def _conversation(self, asked: Text) -> list[int]:
        """Returns the tokens before the answer to a user's turn, or none."""
        # Each of the two turns has half of the remaining length.
        written = asked.ids[asked.given : (self.length + asked.given) // 2]
        stops = self.tokenizer.stop_ids
        question = self.tokenizer.decode([x for x in written if x not in stops]).strip()
        if not question:
            return []
        turn = [{"role": "user", "content": question}]
        chat = self.tokenizer.chat(turn, add_generation_prompt=True)
        ids = self.tokenizer.encode(chat)
        return ids if len(ids) < self.length else []

    def _continue(self, prompts: list[list[int]], key: jax.Array) -> list[Text]:
        written = generate.answers(
            self.graph,
            self.params,
            prompts,
            self.place,
            batch_size=round_up(min(ROWS, len(prompts)), self.row_multiple),
            max_new_tokens=self.length - min(map(len, prompts)),
            stop_ids=self.tokenizer.stop_ids,
            key=key,
            keep_stop=True,
        )
        return [
            Text((prompt + ids)[: self.length], len(prompt))
            for prompt, ids in zip(prompts, written, strict=True)
        ]


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
      `loss_mask`, which is true for all tokens but the first `given` of each text.
    """
    return padded([text.example for text in texts], len(texts), length)
