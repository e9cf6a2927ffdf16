"""The model on its devices and batches of few shapes, for scoring and decoding."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from examples.finetune.data.batches import round_up
from examples.finetune.model import parameters, sharding
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.tokenizer import Tokenizer

# The shortest padded row of a batch.
SHORTEST = 16

Advance = Callable[[int], Any]
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A model on its devices, with the size of its batches.

    Attributes:
      graph: the model's structure.
      params: its parameters.
      place: a function that puts a batch on the devices.
      tokenizer: the model's tokenizer.
      rows: the rows of a batch.
      window: the most tokens from which the model predicts, at most its number of
        positions.
    """

    graph: nnx.GraphDef
    params: dict[str, Any]
    place: sharding.Place
    tokenizer: Tokenizer
    rows: int
    window: int

    @classmethod
    def of(
        cls, model: Decoder, tokenizer: Tokenizer, rows: int, window: int
    ) -> "Placed":
        """Splits a model into structure and parameters.

        The rows are rounded up to a multiple of the mesh's parts of a batch.

        Args:
          model: a model with weights, on a mesh or on one device.
          tokenizer: the model's tokenizer.
          rows: the rows of a batch, at least 1.
          window: the most tokens from which the model predicts, at least 1.
        """
        mesh = model.mesh
        spec = None if mesh is None else sharding.batch_sharding(mesh)
        multiple = sharding.row_shards(mesh)
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
    """Returns the smallest power of two that is at least both numbers."""
    return 1 << (max(number, least) - 1).bit_length()


def by_length(
    items: Sequence[Item], length: Callable[[Item], int], size: int
) -> list[list[Item]]:
    """Returns groups of `size`, the longest items first, to need little padding.

    With the longest group first, insufficient memory is detected at once.
    """
    ordered = sorted(items, key=length, reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
