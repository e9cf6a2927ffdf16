"""What scoring and decoding share: the placed model, and batches of few shapes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from examples.finetune.data.batches import Batch, round_up
from examples.finetune.model import parameters, sharding
from examples.finetune.model.llama import Llama
from examples.finetune.model.tokenizer import Tokenizer

# The shortest row of a batch.
SHORTEST = 16

Advance = Callable[[int], Any]
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A model on its devices, and how much is given to it at once.

    Attributes:
      graph: the model's structure.
      params: its parameters.
      place: puts a batch on the devices.
      tokenizer: the model's.
      rows: of a batch.
      window: the most tokens from which the model predicts, as many as it has
        positions or fewer.
    """

    graph: nnx.GraphDef
    params: dict[str, Any]
    place: Callable[[Batch], dict[str, jax.Array]]
    tokenizer: Tokenizer
    rows: int
    window: int

    @classmethod
    def of(cls, model: Llama, tokenizer: Tokenizer, rows: int, window: int) -> "Placed":
        """Takes a model apart; rows become a multiple of what its mesh cuts them into.

        Args:
          model: with its weights, on a mesh or on one device.
          tokenizer: the model's.
          rows: of a batch, at least 1.
          window: at least 1.
        """
        mesh = model.mesh
        spec = None if mesh is None else sharding.batch_sharding(mesh)
        multiple = 1 if mesh is None else sharding.row_shards(mesh)
        graph, params = parameters.split(model)
        return cls(
            graph,
            params,
            lambda batch: jax.device_put(batch, spec),
            tokenizer,
            round_up(rows, multiple),
            window,
        )


def power_of_two(number: int, least: int) -> int:
    """The smallest power of two that is no less than either."""
    return 1 << (max(number, least) - 1).bit_length()


def by_length(
    items: Sequence[Item], length: Callable[[Item], int], size: int
) -> list[list[Item]]:
    """Groups of `size`, the longest items first, so that a group needs little padding.

    The longest come first, too, so that what does not fit into memory fails at once.
    """
    ordered = sorted(items, key=length, reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
