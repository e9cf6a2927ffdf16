"""The k-th largest magnitude of each block, and the coordinates that reach it.

A float's magnitude read as an unsigned integer, its pattern, keeps its order, so the
threshold is found by counting patterns (`_search.py`), never by sorting.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax import _blocks, _checks, _counts
from mofo_jax._counts import Count
from mofo_jax._passes import Ranking, varying_axes
from mofo_jax._search import Bracket, search

TIES = ("all", "exact")

# Where the first pass looks, in octaves from mean * log(n / k): for exponentially
# distributed magnitudes that is the threshold itself.
_FIRST_OCTAVES = np.array((-6.0, -2.0, -0.7, -0.1, 0.25, 1.0))


def top_fraction_mask(
    x: jax.typing.ArrayLike,
    fraction: float | jax.Array,
    *,
    block_axes: tuple[int, ...] = (),
    ties: str = "all",
) -> jax.Array:
    r"""Marks the largest magnitudes of each block.

    Args:
      x: Real or complex floating-point array of any shape. A NaN ranks above infinity;
        zeros of either sign are equal and rank like any other magnitude.
      fraction: The share of each block to mark, in (0, 1], shape (); may be traced.
      block_axes: The axes that index separate blocks.
      ties: `"all"` marks all that equal the k-th largest, `"exact"` exactly
        `k = max(1, int(n * fraction))`, of equals those with the lowest row-major
        index.

    Returns:
      A boolean array of `x`'s shape.

    Raises:
      TypeError: If `x` is not of a floating-point or complex dtype, `fraction` no
        number, or `block_axes` no tuple.
      ValueError: If `fraction`, `block_axes` or `ties` has a wrong value.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> x = jnp.array([[1.0, -5.0, 2.0, 3.0], [8.0, 7.0, -9.0, 6.0]])
      >>> print(mofo_jax.top_fraction_mask(x, 0.5).astype(int))
      [[0 0 0 0]
       [1 1 1 1]]
      >>> print(mofo_jax.top_fraction_mask(x, 0.5, block_axes=(0,)).astype(int))
      [[0 1 0 1]
       [1 0 1 0]]

    Source: the filter of the paper's algorithm 1; blocks by axis are ours.
    """
    x = _checks.as_inexact(x)
    _checks.check_choice("ties", ties, TIES)
    if not _checks.is_scalar(fraction):
        raise TypeError(f"`fraction` must be a number in (0, 1], got {fraction!r}")
    _checks.check_fraction("fraction", fraction)
    axes = _blocks.normalize_axes(block_axes, x.ndim, "x")
    if x.size == 0:
        return jnp.zeros(x.shape, bool)
    (mask,) = select([Competition(x, fraction, axes)], ties)
    return mask


def magnitude_threshold(
    x: jax.typing.ArrayLike, k: int, *, block_axes: tuple[int, ...] = ()
) -> jax.Array:
    """Returns the k-th largest magnitude of each block.

    Args:
      x: Real or complex floating-point array with at least `k` elements in a block.
      k: Which magnitude, from 1 for the largest to the size of a block.
      block_axes: The axes that index separate blocks.

    Returns:
      The thresholds, real, of the precision of `x`, in the shape of `x` with every axis
      but the block axes 1.

    Raises:
      TypeError: If `x` is not of a floating-point or complex dtype, `k` no integer, or
        `block_axes` no tuple.
      ValueError: If `k` or `block_axes` has a wrong value.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> x = jnp.array([[1.0, -5.0, 2.0, 3.0], [8.0, 7.0, -9.0, 6.0]])
      >>> print(mofo_jax.magnitude_threshold(x, 2, block_axes=(0,)))
      [[3.]
       [8.]]

    Source: the threshold of the authors' code, there by `torch.topk`.
    """
    x = _checks.as_inexact(x)
    axes = _blocks.normalize_axes(block_axes, x.ndim, "x")
    size = _rank(x, axes).block_size
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"`k` must be an integer, got {k!r}")
    if not 1 <= k <= size:
        raise ValueError(f"`k` must be in [1, {size}], the size of a block, got {k}")
    return _kth_largest(x, int(k), axes)


@functools.partial(jax.jit, static_argnames=("k", "block_axes"))
def _kth_largest(x: jax.Array, k: int, block_axes: tuple[int, ...]) -> jax.Array:
    """Returns the k-th largest magnitude of each block, the inner axes kept as 1."""
    ranking = _rank(x, block_axes)
    words = _counts.words_needed(ranking.block_size)
    ranking = _with_guess(ranking, _counts.constant(k, words))
    (bracket,) = search([ranking])
    # The search stops at any pattern that parts the k largest from the rest.
    patterns = magnitude_patterns(x)
    most = np.array(np.iinfo(patterns.dtype).max, patterns.dtype)
    reaching = jnp.where(_reaches(ranking, bracket.low), patterns, most)
    smallest = jnp.min(reaching, axis=ranking.inner_axes, keepdims=True)
    return lax.bitcast_convert_type(smallest, jnp.abs(x).dtype)


class Competition(NamedTuple):
    """The coordinates of one tensor that compete to be selected.

    Attributes:
      scores: Floating-point or complex array; larger magnitudes win.
      fraction: How much of each block to select, a number in (0, 1] or an array of
        shape ().
      block_axes: The axes that index separate blocks, ascending.
      axis_name: Mesh axes over which the tensor is sharded inside `shard_map`.
    """

    scores: jax.Array
    fraction: float | jax.Array
    block_axes: tuple[int, ...] = ()
    axis_name: tuple[str, ...] = ()


def select(competitions: Sequence[Competition], ties: str) -> list[jax.Array]:
    """Selects the largest magnitudes of every block, in one joint search.

    Args:
      competitions: One for each tensor, none of them empty.
      ties: `"all"` selects all that equal the threshold, `"exact"` exactly the wanted
        number, of equals those that come first in row-major order.

    Returns:
      For each tensor a boolean mask of its shape.
    """
    arrays = [
        (scores, fraction if isinstance(fraction, jax.Array) else None)
        for scores, fraction, _, _ in competitions
    ]
    settings = tuple(
        # Where the fraction is an array, this one is not looked at.
        (1.0 if isinstance(fraction, jax.Array) else float(fraction), *others)
        for _, fraction, *others in competitions
    )
    return _select(arrays, settings, ties)


# Compiled here, so that an update outside of `jax.jit` does not compile at every step.
@functools.partial(jax.jit, static_argnames=("settings", "ties"))
def _select(
    arrays: list[tuple[jax.Array, jax.Array | None]],
    settings: tuple[tuple[float, tuple[int, ...], tuple[str, ...]], ...],
    ties: str,
) -> list[jax.Array]:
    """Is `select`, with what may be traced apart from what may not."""
    rankings = []
    for (scores, traced), (static, block_axes, axis_name) in zip(
        arrays, settings, strict=True
    ):
        names = varying_axes(scores, axis_name)
        ranking = _rank(scores, block_axes)._replace(axis_name=names)
        fraction = static if traced is None else traced
        chosen = _counts.fraction_of(fraction, ranking.block_size)
        rankings.append(_with_guess(ranking, chosen))
    brackets = search(rankings)
    if ties == "exact":
        return _break_ties(rankings, brackets)
    return [
        _reaches(ranking, bracket.low)
        for ranking, bracket in zip(rankings, brackets, strict=True)
    ]


def magnitude_patterns(x: jax.Array) -> jax.Array:
    """Returns |x| as unsigned integers of the same order, shape and width.

    Zeros of either sign give 0 and a NaN ranks above infinity. Since integers are
    compared, no platform's flush-to-zero can change the order.
    """
    if jnp.iscomplexobj(x):
        x = jnp.abs(x)
    width = 8 * x.dtype.itemsize
    unsigned = np.dtype(f"uint{width}")
    sign = np.array(1 << (width - 1), unsigned)
    return lax.bitcast_convert_type(x, unsigned) & ~sign


def _rank(x: jax.Array, block_axes: tuple[int, ...]) -> Ranking:
    """Returns the search that ranks the magnitudes of one tensor."""
    return Ranking(
        arrays=(x,),
        patterns=magnitude_patterns,
        shape=x.shape,
        block_axes=block_axes,
        bits=8 * jnp.finfo(x.dtype).dtype.itemsize - 1,
        chosen=(),
    )


def _with_guess(ranking: Ranking, chosen: Count) -> Ranking:
    """Sets how many to choose, and guesses the threshold from the mean magnitude."""
    magnitude = jnp.abs(ranking.arrays[0])
    wide = jnp.promote_types(magnitude.dtype, jnp.float32)
    total = jnp.sum(magnitude, axis=ranking.inner_axes, dtype=wide)
    if ranking.axis_name:
        total = lax.psum(total, ranking.axis_name)
    size = float(ranking.block_size)  # As an integer it may not fit JAX's 32 bits.
    share = jnp.maximum(_counts.to_float(chosen), 1.0) / size
    guess = total / size * jnp.maximum(-jnp.log(share), 0.1)
    octaves = np.exp2(_FIRST_OCTAVES).reshape((-1,) + (1,) * guess.ndim)
    patterns = magnitude_patterns((guess[None] * octaves).astype(magnitude.dtype))
    # The least pattern above zero shows whether zeros have to be chosen.
    return ranking._replace(
        chosen=chosen,
        guess=jnp.concatenate([jnp.ones_like(patterns[:1]), patterns]),
    )


def _spread(per_block: jax.Array, ranking: Ranking, dtype: np.dtype) -> jax.Array:
    """Gives each block's pattern a shape and dtype that compare with the tensor's."""
    return lax.expand_dims(per_block, ranking.inner_axes).astype(dtype)


def _reaches(ranking: Ranking, per_block: jax.Array) -> jax.Array:
    """Returns where the tensor reaches its block's pattern."""
    patterns = ranking.patterns(*ranking.arrays)
    return patterns >= _spread(per_block, ranking, patterns.dtype)


def _break_ties(
    rankings: Sequence[Ranking], brackets: Sequence[Bracket]
) -> list[jax.Array]:
    """Selects exactly the wanted number, ties by lowest row-major index.

    What is tied is ranked again by its index along each axis in turn: the same search,
    with the same few collectives, however the tensor is sharded.
    """
    found = list(zip(rankings, brackets, strict=True))
    masks = [_reaches(ranking, _cut(ranking, bracket)) for ranking, bracket in found]
    depth = max((len(ranking.inner_axes) for ranking in rankings), default=0)
    for step in range(depth):
        deeper = [i for i, (r, _) in enumerate(found) if step < len(r.inner_axes)]
        ranked = [_rank_tied(*found[i], found[i][0].inner_axes[step]) for i in deeper]
        for i, ranking, bracket in zip(deeper, ranked, search(ranked), strict=True):
            found[i] = ranking, bracket
            masks[i] |= _reaches(ranking, _cut(ranking, bracket))
    return masks


def _cut(ranking: Ranking, bracket: Bracket) -> jax.Array:
    """Returns the pattern from which on all are chosen without a choice among ties."""
    exact = _counts.equal(bracket.count_low, ranking.chosen)
    return jnp.where(exact, bracket.low, bracket.high)


def _rank_tied(ranking: Ranking, bracket: Bracket, axis: int) -> Ranking:
    """Returns the search among the tied coordinates, by their index along an axis."""
    length = ranking.shape[axis]
    exact = _counts.equal(bracket.count_low, ranking.chosen)
    missing = _counts.subtract(ranking.chosen, bracket.count_high)
    none = tuple(jnp.zeros_like(word) for word in missing)

    def patterns(low: jax.Array, *arrays: jax.Array) -> jax.Array:
        ranked = ranking.patterns(*arrays)
        index = lax.broadcasted_iota(np.uint32, ranking.shape, axis)
        tied = ranked == _spread(low, ranking, ranked.dtype)
        return jnp.where(tied, np.uint32(length) - index, np.uint32(0))

    return ranking._replace(
        arrays=(bracket.low, *ranking.arrays),
        patterns=patterns,
        bits=length.bit_length(),
        chosen=_counts.where(exact, none, missing),
        guess=None,
    )
