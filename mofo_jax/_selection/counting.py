"""One pass over a tensor: how many coordinates of each block reach each threshold.

A count is a reduction: it works under any sharding and moves a few integers between
devices, where a sort would gather the tensor.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._options.blocks import inner_axes
from mofo_jax._selection import limbs
from mofo_jax._selection.limbs import Count

# Moments are taken of eighths of octaves, up to 32 octaves on either side.
_PARTS_OF_OCTAVE = 8
_FARTHEST = 255


# Thresholds counted in one pass. Seven need three or four passes on momenta of a real
# run, four need one more. The CPU's time for eight is 1.4 times that for two, by the
# compiler's estimate the TPU's for seven 1.1 times that for one, and a GPU waits for
# memory.
THRESHOLDS = 7

# How a pass is written:
# "sums": a sum for each threshold over as much of the tensor as possible, so that as
#   little as possible is exchanged between devices and kept in small arrays, which cost
#   a TPU 16 kB each.
# "lanes": the same, of tensors that a TPU need not copy for the loop.
# "rows": the same sums row by row, then over the rows for all thresholds at once. By
#   the compiled programs of an H100 that is a quarter of the kernels.
# "operands": a reduction of several operands, for one CPU.
# None is a Pallas kernel. Compiled for TPU and for H100, the loop reads each tensor
# once for all thresholds without one, and JAX refuses to partition a kernel over Auto
# axes.
Form = Literal["sums", "lanes", "rows", "operands"]

_Result = TypeVar("_Result")


class Ranking(NamedTuple):
    """What is ranked in one tensor.

    Attributes:
      arrays: The arrays that the patterns are computed from.
      patterns: Computes them: unsigned integers of the tensor's shape, larger is
        better. Called anew in every pass, so that no copy of them is kept.
      shape: The tensor's shape.
      block_axes: The axes that index separate blocks, ascending.
      bits: Patterns are below 2**bits.
      octave: How many patterns double what they stand for; 0 where they are no floats.
      axis_name: Mesh axes over which the counts of shards are summed.
    """

    arrays: tuple[jax.Array, ...]
    patterns: Callable[..., jax.Array]
    shape: tuple[int, ...]
    block_axes: tuple[int, ...]
    bits: int
    octave: int = 0
    axis_name: tuple[str, ...] = ()

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes along which coordinates compete."""
        return inner_axes(len(self.shape), self.block_axes)

    @property
    def shards(self) -> int:
        """Over how many shards a block is spread inside `shard_map`."""
        return lax.axis_size(self.axis_name) if self.axis_name else 1

    @property
    def block_size(self) -> int:
        """The number of coordinates in a block, over all its shards."""
        return self.shards * math.prod(self.shape[i] for i in self.inner_axes)


def varying_axes(x: jax.Array, axis_name: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the mesh axes over which the shards of `x` differ, inside `shard_map`.

    A replicated tensor's counts must not be added up over its copies. Without
    `check_vma` JAX does not know what is replicated, and all the axes are returned.
    """
    if not any(_varies_over(lax.axis_index(name)) for name in axis_name):
        return axis_name
    return tuple(name for name in axis_name if name in _varies_over(x))


def _varies_over(x: jax.Array) -> frozenset[str]:
    """Returns the axes over which JAX knows that shards differ."""
    kind = jax.typeof(x)
    # JAX 0.10 keeps here what it kept in `vma` before.
    kind = getattr(kind, "manual_axis_type", kind)
    return getattr(kind, "varying", None) or getattr(kind, "vma", frozenset())


def in_best_form(compute: Callable[[Form], _Result]) -> _Result:
    """Computes what a search or a count gives in the form that suits the platform.

    That is known when the program is lowered, not here: it may be compiled elsewhere.
    """
    forms: dict[str, Form] = {"cuda": "rows", "tpu": "lanes"}
    if _is_one_cpu():
        forms["cpu"] = "operands"
    return lax.platform_dependent(
        default=functools.partial(compute, "sums"),
        **{name: functools.partial(compute, form) for name, form in forms.items()},
    )


def count_reaching(
    ranking: Ranking, thresholds: jax.Array, words: int, form: Form
) -> list[Count]:
    """Counts the coordinates of each block that reach each threshold, in this shard.

    Args:
      ranking: What to count.
      thresholds: Patterns, `[thresholds, *blocks]`.
      words: How many words a count has.
      form: How to sum.

    Returns:
      The counts, in one or more pieces that make up words of `thresholds`'s shape when
      they are concatenated.
    """
    patterns = ranking.patterns(*ranking.arrays)
    reached = [
        (patterns >= lax.expand_dims(threshold, ranking.inner_axes)).astype(limbs.WORD)
        for threshold in thresholds.astype(patterns.dtype)
    ]
    pieces, kept = _summed(reached, ranking, form)
    return [
        limbs.sum_exactly(
            (piece,),
            lambda word: jnp.sum(word, axis=kept, dtype=word.dtype),
            math.prod(piece.shape[axis] for axis in kept),
            words,
        )
        for piece in pieces
    ]


def moments(ranking: Ranking, form: Form) -> tuple[list[jax.Array], np.ndarray]:
    """Sums what tells where a block's patterns lie, in this shard.

    Args:
      ranking: What to sum.
      form: How to sum.

    Returns:
      How many patterns are not zero, and the sums of their distances from
      `usual_octave` and of the squares of these, in octaves of at most 32: pieces that
      make up float32 `[3, *blocks]` when they are concatenated, and by what the three
      are yet to be multiplied. They are rounded: for guesses only.
    """
    step = _sampling_step(ranking) if form == "operands" else 1
    arrays = ranking.arrays
    if form == "rows":
        # A GPU's fusion that also sums cannot write to the buffer it reads from: the
        # new momentum would be a second copy of the old. A TPU's can, and saves a read.
        arrays = lax.optimization_barrier(arrays)
    patterns = ranking.patterns(*arrays)
    if step > 1:
        patterns = patterns[_every(step, ranking)]
    above = patterns > 0
    finest = max(ranking.octave // _PARTS_OF_OCTAVE, 1)
    distances = (patterns >> (finest.bit_length() - 1)).astype(np.int32)
    distances -= np.int32(usual_octave(ranking) * _PARTS_OF_OCTAVE)
    distances = jnp.where(above, jnp.clip(distances, -_FARTHEST, _FARTHEST), 0)
    terms = [above.astype(np.int32), distances, distances * distances]
    if form == "operands":
        # The CPU adds integers four times as fast as floats, whose order it must keep.
        length = ranking.shape[ranking.inner_axes[-1]] if ranking.inner_axes else 1
        largest = (1, _FARTHEST, _FARTHEST**2)
        shifts = [max((most * length).bit_length() - 31, 0) for most in largest]
        terms = [term >> shift for term, shift in zip(terms, shifts, strict=True)]
    else:
        shifts = [0] * 3
        terms = [term.astype(np.float32) for term in terms]
    pieces, kept = _summed(terms, ranking, form)
    scales = step * np.exp2(shifts) / _PARTS_OF_OCTAVE ** np.arange(3)
    sums = [jnp.sum(piece.astype(np.float32), axis=kept) for piece in pieces]
    return sums, scales.astype(np.float32)


def _sampling_step(ranking: Ranking) -> int:
    """Returns of how many slices of a tensor one is enough for its moments.

    A sample is for one device: elsewhere it would be spread unevenly.
    """
    # Tens of thousands of coordinates in sixteen slices tell mean and spread well.
    inner = ranking.inner_axes
    slices = ranking.shape[inner[0]] if inner else 1
    return max(1, min(64, slices // 16, ranking.block_size // 2**16))


def _every(step: int, ranking: Ranking) -> tuple[slice, ...]:
    """Returns the index of every so many slices along the first inner axis."""
    return tuple(
        slice(None, None, step if axis == ranking.inner_axes[0] else None)
        for axis in range(len(ranking.shape))
    )


def usual_octave(ranking: Ranking) -> float:
    """Returns about which octave of patterns momenta lie: 2**-20 in float32."""
    # Indices, too, are ranked; they have no octaves, and nobody asks for their moments.
    return 0.84 * 2 ** (ranking.bits - 1) / ranking.octave if ranking.octave else 0.0


def _summed(
    terms: Sequence[jax.Array], ranking: Ranking, form: Form
) -> tuple[list[jax.Array], tuple[int, ...]]:
    """Sums the terms over all inner axes but some, which are left for a second sum.

    Returns:
      The sums, one leading axis before the tensor's: pieces that make up one sum for
      each term when they are concatenated. And the axes of these that are left over:
      none of the summed axes is there any more.
    """
    inner = ranking.inner_axes
    if form == "operands":
        # The compiler rewrites a plain sum over more than 32 elements into one that
        # needs the compared tensor written out, which costs 10 times as much. It
        # leaves a reduction of several operands alone, which reads once for them all.
        zeros = tuple(np.zeros((), term.dtype) for term in terms)
        sums = lax.reduce(tuple(terms), zeros, _add_all, inner[-1:])
        return [jnp.stack(sums)], tuple(axis + 1 for axis in inner[:-1])
    kept = _axes_to_keep(ranking, form)
    at_once = tuple(axis for axis in inner if axis not in kept)
    sums = [jnp.sum(term, axis=at_once, dtype=term.dtype)[None] for term in terms]
    if form == "rows":
        sums = [jnp.concatenate(sums)]
    before = [sum(summed < axis for summed in at_once) for axis in kept]
    return sums, tuple(a - b + 1 for a, b in zip(kept, before, strict=True))


def _add_all(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _axes_to_keep(ranking: Ranking, form: Form) -> tuple[int, ...]:
    """Returns the inner axes to leave for a second sum, so that no word overflows.

    As few and as short as will do, unless rows are wanted: what is kept is what devices
    exchange.
    """

    def fits(axes: Sequence[int]) -> bool:
        return math.prod(ranking.shape[i] for i in axes) < 2**32

    inner = ranking.inner_axes
    if form == "rows" and fits(inner[:-1]) and fits(inner[-1:]):
        return inner[:-1]
    kept: list[int] = []
    for axis in sorted(inner, key=lambda i: -ranking.shape[i]):
        if fits([i for i in inner if i not in kept]):
            break
        kept.append(axis)
    return tuple(sorted(kept))


def _is_one_cpu() -> bool:
    """Whether no array on the CPU can be sharded.

    A sharded reduction of several operands gathers the shards' partial results; plain
    sums are combined by an all-reduce.
    """
    try:
        return jax.device_count("cpu") == 1
    except RuntimeError:  # The CPU is not among the platforms in use.
        return False
