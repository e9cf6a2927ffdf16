"""A conversation with a model."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from examples.finetune.command.errors import InputError
from examples.finetune.evaluation.streaming import stream
from examples.finetune.model import pretrained
from examples.finetune.model.tokenizer import Tokenizer


class TooLong(InputError):
    """A conversation is longer than the model's context."""


@dataclasses.dataclass
class Speaker:
    """A model, and what has been said.

    Attributes:
      name: of the model.
      tokenizer: with its chat template.
      graph: its structure.
      params: its parameters.
      longest: the most positions that it has.
      said: the messages so far, each with `role` and `content`.
    """

    name: str
    tokenizer: Tokenizer
    graph: nnx.GraphDef
    params: Any
    longest: int
    said: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @classmethod
    def load(cls, model: str, dtype: DTypeLike = "float32") -> "Speaker":
        """Reads a model.

        Args:
          model: as for `pretrained.open_model`.
          dtype: of the computation.

        Raises:
          InputError: as `pretrained.open_model` does.
        """
        source = pretrained.open_model(model)
        graph, params = nnx.split(
            pretrained.build(source, dtype=dtype, scan_layers=True)
        )
        longest = source.config.max_positions
        return cls(source.name, source.tokenizer, graph, params, longest)

    def forget(self) -> None:
        """Begins a new conversation."""
        self.said.clear()

    def answer(self, message: str, max_new_tokens: int) -> Iterator[str]:
        """Answers a message; after the last token, both are part of the conversation.

        Args:
          message: of the user.
          max_new_tokens: the longest answer.

        Yields:
          The text of the answer so far, after each token.

        Raises:
          InputError: the model has no chat template.
          TooLong: the conversation would be longer than the model's context.
        """
        said = [*self.said, {"role": "user", "content": message}]
        text = self.tokenizer.chat(said, add_generation_prompt=True)
        prompt = self.tokenizer.encode(text)
        room = min(max_new_tokens, self.longest - len(prompt))
        if room < 1:
            raise TooLong(
                f"The conversation has {len(prompt)} tokens, and the context of "
                f"{self.name} {self.longest}; begin a new one with an empty line, or "
                "send a shorter message"
            )
        ids: list[int] = []
        for token in stream(
            self.graph,
            self.params,
            prompt,
            max_new_tokens=room,
            stop_ids=self.tokenizer.stop_ids,
        ):
            ids.append(token)
            yield self.tokenizer.decode(ids)
        answer = {"role": "assistant", "content": self.tokenizer.decode(ids)}
        self.said = [*said, answer]
