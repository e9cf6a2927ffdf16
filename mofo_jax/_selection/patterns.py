"""Patterns: magnitudes as unsigned integers of the same order."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._options.blocks import inner_axes
from mofo_jax._selection.limbs import LIMB, Count

_STATIC = {"static": True}
_Tree = TypeVar("_Tree")


def magnitude_patterns(x: jax.Array) -> jax.Array:
    """Returns |x| as unsigned integers of the same order, shape and width.

    Zeros of either sign give 0, and a NaN ranks above infinity. Since integers are
    compared, a processor that flushes subnormal numbers to zero does not change the
    order.
    """
    if jnp.iscomplexobj(x):
        x = jnp.abs(x)
    width = 8 * x.dtype.itemsize
    unsigned = np.dtype(f"uint{width}")
    sign = np.array(1 << (width - 1), unsigned)
    return lax.bitcast_convert_type(x, unsigned) & ~sign


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ranked:
    """A tensor whose coordinates are ranked.

    Attributes:
      arrays: The arrays from which the patterns are computed.
      patterns: A function from `arrays` to unsigned integers of the tensor's shape;
        larger ones rank higher. It is called in every pass, so that patterns are not
        stored.
      shape: The tensor's shape.
      block_axes: The axes that index separate blocks, ascending.
      bits: Patterns are less than 2**bits.
      octave: The number of patterns between a number and its double; 0 if the patterns
        are not those of floating-point numbers.
      axis_name: The mesh axes of `shard_map` that divide the blocks.
      copies: Those of them over which the tensor is replicated.
    """

    arrays: tuple[jax.Array, ...]
    patterns: Callable[..., jax.Array] = dataclasses.field(metadata=_STATIC)
    shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    block_axes: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    bits: int = dataclasses.field(metadata=_STATIC)
    octave: int = dataclasses.field(default=0, metadata=_STATIC)
    axis_name: tuple[str, ...] = dataclasses.field(default=(), metadata=_STATIC)
    copies: tuple[str, ...] = dataclasses.field(default=(), metadata=_STATIC)

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes along which a block extends."""
        return inner_axes(len(self.shape), self.block_axes)

    @property
    def shards(self) -> int:
        """The number of shards of `shard_map` over which a block is distributed."""
        own = tuple(name for name in self.axis_name if name not in self.copies)
        return lax.axis_size(own) if own else 1

    @property
    def block_size(self) -> int:
        """The number of coordinates in a block, over all its shards."""
        return self.shards * math.prod(self.shape[i] for i in self.inner_axes)

    @property
    def pattern_dtype(self) -> np.dtype:
        """The dtype that holds every pattern and the integer after the largest one."""
        return LIMB if self.bits < 32 else np.dtype(np.uint64)

    def once(self, sums: _Tree) -> _Tree:
        """Returns sums over a shard, zero in all but one of its copies."""
        if not self.copies:
            return sums
        first = lax.axis_index(self.copies) == 0
        return jax.tree.map(lambda x: jnp.where(first, x, jnp.zeros_like(x)), sums)

    def reaching(self, per_block: jax.Array) -> jax.Array:
        """Returns where the tensor's patterns reach the one given for their block."""
        patterns = self.patterns(*self.arrays)
        return patterns >= self.spread(per_block, patterns.dtype)

    def spread(self, per_block: jax.Array, dtype: np.dtype) -> jax.Array:
        """Broadcasts one pattern per block to the dimensions of the tensor."""
        return lax.expand_dims(per_block, self.inner_axes).astype(dtype)


def rank_magnitudes(
    x: jax.Array, block_axes: tuple[int, ...], axis_name: tuple[str, ...] = ()
) -> Ranked:
    """Returns a tensor that is ranked by the magnitudes of its numbers.

    Only those mesh axes of `axis_name` are kept that `differing` returns, since the
    counts of a replicated tensor must not be added over its copies.

    Raises:
      TypeError: If the dtype's patterns do not have the order of its numbers.
    """
    info = jnp.finfo(x.dtype)
    # Their numbers without the sign bit are not in the order of the magnitudes.
    if x.dtype.name.endswith(("fnuz", "fnu")) or info.bits < 8:
        raise TypeError(
            f"arrays of the dtype {x.dtype} cannot be ranked: cast them to a wider one"
        )
    return Ranked(
        arrays=(x,),
        patterns=magnitude_patterns,
        shape=x.shape,
        block_axes=block_axes,
        bits=info.bits - 1,
        octave=2**info.nmant,
        axis_name=differing(x, axis_name),
    )


def differing(x: jax.Array, axis_name: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those mesh axes of `shard_map` over which a tensor's shards differ.

    Without `check_vma`, JAX does not know what is replicated, and all are returned.
    """
    if not any(varies_over(lax.axis_index(name)) for name in axis_name):
        return axis_name
    return tuple(name for name in axis_name if name in varies_over(x))


def ranked_together(tensors: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """Returns tensors that share their blocks, each divided over the axes of all."""
    names = tuple(dict.fromkeys(name for one in tensors for name in one.axis_name))
    return tuple(
        dataclasses.replace(
            one,
            axis_name=names,
            copies=tuple(name for name in names if name not in one.axis_name),
        )
        for one in tensors
    )


def varies_over(x: jax.Array) -> frozenset[str]:
    """Returns the axes over which JAX knows that shards differ."""
    kind = jax.typeof(x)
    # JAX 0.10 has `manual_axis_type.varying` in place of `vma`.
    kind = getattr(kind, "manual_axis_type", kind)
    return getattr(kind, "varying", None) or getattr(kind, "vma", frozenset())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Contest:
    """Tensors whose coordinates compete with one another, block by block.

    A contest usually has one tensor. Several tensors of a contest share their blocks,
    and have the same lengths of block axes, the same kind of patterns and the same
    `axis_name`.

    Attributes:
      tensors: The tensors.
      wanted: The number of coordinates that each block selects: limbs of shape (), or
        of the blocks' shape. Zero is allowed.
    """

    tensors: tuple[Ranked, ...]
    wanted: Count

    @property
    def block_size(self) -> int:
        """The number of coordinates in a block, over all tensors and shards."""
        return sum(tensor.block_size for tensor in self.tensors)
