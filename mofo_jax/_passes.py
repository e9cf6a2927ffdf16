"""One pass over a tensor: how many coordinates of each block reach each threshold.

A count is a reduction: it works under any sharding and moves a few integers between
devices, where a sort would gather the tensor.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax import _counts
from mofo_jax._counts import Count

# Thresholds counted in one pass. In the CPU's form eight counts cost 1.4 times two;
# in a simulation with normal and heavy-tailed magnitudes seven need 4 to 5 passes,
# and four need 6.
THRESHOLDS = 7


class Ranking(NamedTuple):
    """What is ranked in one tensor, and how many coordinates each block wants.

    Attributes:
      arrays: The arrays that the patterns are computed from.
      patterns: Computes them: unsigned integers of the tensor's shape, larger is
        better. Called anew in every pass, so that no copy of them is kept.
      shape: The tensor's shape.
      block_axes: The axes that index separate blocks, ascending.
      bits: Patterns are below 2**bits.
      chosen: How many coordinates each block wants: words of shape () or of one length
        for each block axis. Zero is allowed.
      guess: Patterns to count first, `[THRESHOLDS, *blocks]`; None divides evenly.
      axis_name: Mesh axes over which the counts of shards are summed.
    """

    arrays: tuple[jax.Array, ...]
    patterns: Callable[..., jax.Array]
    shape: tuple[int, ...]
    block_axes: tuple[int, ...]
    bits: int
    chosen: Count
    guess: jax.Array | None = None
    axis_name: tuple[str, ...] = ()

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes along which coordinates compete."""
        return tuple(i for i in range(len(self.shape)) if i not in self.block_axes)

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


def count_reaching(ranking: Ranking, thresholds: jax.Array) -> Count:
    """Counts the coordinates of each block that reach each threshold.

    Args:
      ranking: What to count.
      thresholds: Patterns, `[THRESHOLDS, *blocks]`.

    Returns:
      The counts, words of `thresholds`'s shape.
    """
    words = _counts.words_needed(ranking.block_size)

    def together(thresholds: jax.Array, *arrays: jax.Array) -> Count:
        # The compiler rewrites a plain sum over more than 32 elements into one that
        # needs the compared tensor written out, which costs 10 times as much. It
        # leaves a reduction of several operands alone, which reads once for them all.
        axis = ranking.inner_axes[-1]
        reached = tuple(_reached(ranking, arrays, thresholds))
        zeros = (np.zeros((), _counts.WORD),) * len(reached)
        sums = lax.reduce(reached, zeros, _add_all, (axis,))
        return _total(
            [lax.expand_dims(s, (axis,)) for s in sums], ranking.inner_axes[:-1]
        )

    def apart(thresholds: jax.Array, *arrays: jax.Array) -> Count:
        kept = _axes_to_keep(ranking)
        at_once = tuple(i for i in ranking.inner_axes if i not in kept)
        sums = [
            jnp.sum(reached, axis=at_once, dtype=_counts.WORD, keepdims=True)
            for reached in _reached(ranking, arrays, thresholds)
        ]
        return _total(sums, kept)

    def _total(sums: list[jax.Array], axes: tuple[int, ...]) -> Count:
        stacked = jnp.stack(sums)
        shifted = tuple(axis + 1 for axis in axes)
        return _counts.sum_exactly(
            (stacked,),
            lambda word: jnp.sum(word, axis=shifted, dtype=word.dtype, keepdims=True),
            math.prod(ranking.shape[axis] for axis in axes),
            words,
        )

    arguments = (thresholds, *ranking.arrays)
    if ranking.inner_axes and _is_one_cpu():
        counts = lax.platform_dependent(*arguments, cpu=together, default=apart)
    else:
        counts = apart(*arguments)
    inner = tuple(axis + 1 for axis in ranking.inner_axes)
    counts = tuple(jnp.squeeze(word, inner) for word in counts)
    if not ranking.axis_name:
        return counts
    return _counts.sum_exactly(
        counts, lambda word: lax.psum(word, ranking.axis_name), ranking.shards, words
    )


def _reached(
    ranking: Ranking, arrays: tuple[jax.Array, ...], thresholds: jax.Array
) -> list[jax.Array]:
    """Returns for each threshold a 1 where a coordinate reaches it."""
    patterns = ranking.patterns(*arrays)
    return [
        (patterns >= lax.expand_dims(t, ranking.inner_axes)).astype(_counts.WORD)
        for t in thresholds.astype(patterns.dtype)
    ]


def _add_all(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _axes_to_keep(ranking: Ranking) -> tuple[int, ...]:
    """Returns the inner axes to leave for a second sum, so that no word overflows.

    As few and as short as will do: what is kept is what devices exchange.
    """
    kept: list[int] = []
    for axis in sorted(ranking.inner_axes, key=lambda i: -ranking.shape[i]):
        rest = [ranking.shape[i] for i in ranking.inner_axes if i not in kept]
        if math.prod(rest) < 2**32:
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
