"""The parameter trees on which steps are timed and compiled, as shapes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from examples.finetune.model.decoder_config import DecoderConfig, parameter_shapes

Shape = tuple[int, ...]

SMOLLM2_135M = DecoderConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    max_positions=8192,
    tied_embedding=True,
)
# The shapes of Llama 3.2 1B: 1.2 billion coordinates.
LLAMA_1B = DecoderConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    rope_theta=500_000.0,
    norm_eps=1e-5,
    max_positions=131072,
    tied_embedding=True,
)
# The shapes of Llama 2 7B: 291 tensors.
LLAMA_7B = DecoderConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    max_positions=4096,
    tied_embedding=False,
)
# The shapes of Llama 2 70B.
LLAMA_70B = dataclasses.replace(
    LLAMA_7B,
    hidden_size=8192,
    intermediate_size=28672,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
)
# 40 million coordinates in 12 tensors, as in a small language model.
_SMALL = (
    *[(4096, 2048)] * 2,
    *[(2048, 2048)] * 3,
    *[(1024, 4096)] * 2,
    *[(1536, 576)] * 2,
    *[(2048,)] * 3,
)


@dataclasses.dataclass(frozen=True)
class Tree:
    """A parameter tree, described by shapes.

    Attributes:
      shapes: the tensors' shapes, by name.
      block_axes: the tensors' block axes, by the same names.
    """

    shapes: Mapping[str, Shape]
    block_axes: Mapping[str, tuple[int, ...]]

    @property
    def coordinates(self) -> int:
        """The total number of coordinates."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def abstract(self, sharding: Callable[[Shape], Any] | None = None) -> Any:
        """Returns the parameters as float32 `jax.ShapeDtypeStruct`s, by name.

        Args:
          sharding: a function from a shape to a sharding; None for one device.
        """
        import jax
        import jax.numpy as jnp

        return {
            name: jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=sharding(shape) if sharding else None
            )
            for name, shape in self.shapes.items()
        }


def whole(*shapes: Shape) -> Tree:
    """Returns a tree of numbered tensors, each of which is one block."""
    named = {f"{number:02}": shape for number, shape in enumerate(shapes)}
    return Tree(named, dict.fromkeys(named, ()))


def llama(config: DecoderConfig) -> Tree:
    """Returns a Llama with a tensor for each kernel of each layer."""
    shapes = parameter_shapes(config)
    return Tree(shapes, dict.fromkeys(shapes, ()))


def scanned(config: DecoderConfig) -> Tree:
    """Returns a Llama whose layers are stacked on axis 0, each of them a block."""
    shapes = parameter_shapes(dataclasses.replace(config, num_layers=1))
    stacked = {
        name.replace("layers/0/", "layers/"): (
            (config.num_layers, *shape) if name.startswith("layers/") else shape
        )
        for name, shape in shapes.items()
    }
    axes = {name: (0,) if name.startswith("layers/") else () for name in stacked}
    return Tree(stacked, axes)


def largest_scanned(config: DecoderConfig, most: int) -> Tree:
    """Returns a scanned Llama with the most layers that fit, but at least one.

    Args:
      config: the sizes; the number of layers is ignored.
      most: the largest allowed number of coordinates.
    """
    one, two = (
        scanned(dataclasses.replace(config, num_layers=layers)).coordinates
        for layers in (1, 2)
    )
    layers = 1 + max(0, most - one) // (two - one)
    return scanned(dataclasses.replace(config, num_layers=layers))


TREES: dict[str, Tree] = {
    "small": whole(*_SMALL),
    "matrix": whole((4096, 11008)),
    "smollm2-135m": llama(SMOLLM2_135M),
    "smollm2-135m-scanned": scanned(SMOLLM2_135M),
    "llama-1.2b": llama(LLAMA_1B),
    "llama-1.2b-scanned": scanned(LLAMA_1B),
    # For trying the command.
    "tiny": whole((8, 6), (5,)),
}
