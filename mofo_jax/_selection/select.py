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

from mofo_jax import _checks
from mofo_jax._options import blocks
from mofo_jax._selection import limbs
from mofo_jax._selection.counting import Ranking, varying_axes
from mofo_jax._selection.search import Contest, search
from mofo_jax._selection.ties import masks_with_ties, masks_without_ties, reaches

TIES = ("all", "exact")


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
    _checks.check_choice("ties", ties, TIES)
    competition = _checked(x, fraction, block_axes)
    if competition.scores.size == 0:
        return jnp.zeros(competition.scores.shape, bool)
    (mask,) = select([competition], ties)
    return mask


def _checked(
    x: jax.typing.ArrayLike, fraction: float | jax.Array, block_axes: tuple[int, ...]
) -> "Competition":
    """Returns what a user gave, or raises."""
    x = _checks.as_inexact(x)
    if not _checks.is_scalar(fraction):
        raise TypeError(f"`fraction` must be a number in (0, 1], got {fraction!r}")
    _checks.check_fraction("fraction", fraction)
    axes = blocks.normalize_axes(block_axes, x.ndim, "x")
    return Competition(x, fraction, axes)


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
    axes = blocks.normalize_axes(block_axes, x.ndim, "x")
    size = _rank(x, axes).block_size
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"`k` must be an integer, got {k!r}")
    if not 1 <= k <= size:
        raise ValueError(f"`k` must be in [1, {size}], the size of a block, got {k}")
    return _kth_largest(x, int(k), axes)


def selection_passes(
    x: jax.typing.ArrayLike,
    fraction: float | jax.Array,
    *,
    block_axes: tuple[int, ...] = (),
) -> jax.Array:
    """Counts how often a selection reads `x` to find its thresholds.

    Beside these passes, every selection reads `x` once before, for the mean and spread
    of the magnitudes, and once after, to compare it with the thresholds; a compiled
    step makes both in the loops that compute momentum and updates, where it can.

    Args:
      x: Real or complex floating-point array of any shape.
      fraction: The share of each block to select, in (0, 1], shape ().
      block_axes: The axes that index separate blocks.

    Returns:
      The number of passes, int32, shape (). Never more than the bits of a magnitude:
      31 for float32, 15 for bfloat16.

    Raises:
      TypeError: As `top_fraction_mask`.
      ValueError: As `top_fraction_mask`.

    Examples:
      >>> import jax, mofo_jax
      >>> x = jax.random.normal(jax.random.key(0), (1000, 1000))
      >>> print(bool(mofo_jax.selection_passes(x, 0.15) < 8))
      True

    Source: ours.
    """
    competition = _checked(x, fraction, block_axes)
    if competition.scores.size == 0:
        return jnp.zeros((), jnp.int32)
    return _passes(competition.scores, competition.fraction, competition.block_axes)


@functools.partial(jax.jit, static_argnames=("block_axes",))
def _passes(
    x: jax.Array, fraction: float | jax.Array, block_axes: tuple[int, ...]
) -> jax.Array:
    """Is `selection_passes` of checked arguments."""
    ranking = _rank(x, block_axes)
    chosen = limbs.fraction_of(jnp.asarray(fraction), ranking.block_size)
    return search([Contest((ranking,), chosen)]).passes


@functools.partial(jax.jit, static_argnames=("k", "block_axes"))
def _kth_largest(x: jax.Array, k: int, block_axes: tuple[int, ...]) -> jax.Array:
    """Returns the k-th largest magnitude of each block, the inner axes kept as 1."""
    ranking = _rank(x, block_axes)
    words = limbs.words_needed(ranking.block_size)
    (bracket,) = search([Contest((ranking,), limbs.constant(k, words))]).brackets
    # The search stops at any pattern that parts the k largest from the rest.
    patterns = magnitude_patterns(x)
    most = np.array(np.iinfo(patterns.dtype).max, patterns.dtype)
    reaching = jnp.where(reaches(ranking, bracket.low), patterns, most)
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
      block: Tensors of the same name here compete with one another; "" for none. They
        have the same dtype, fraction and lengths of block axes.
    """

    scores: jax.Array
    fraction: float | jax.Array
    block_axes: tuple[int, ...] = ()
    axis_name: tuple[str, ...] = ()
    block: str = ""


def select(competitions: Sequence[Competition], ties: str) -> list[jax.Array]:
    """Selects the largest magnitudes of every block, in one joint search.

    Args:
      competitions: One for each tensor, none of them empty.
      ties: `"all"` selects all that equal the threshold, `"exact"` exactly the wanted
        number, of equals those that come first: by tensor, then in row-major order.

    Returns:
      For each tensor a boolean mask of its shape.
    """
    arrays = [
        (scores, fraction if isinstance(fraction, jax.Array) else None)
        for scores, fraction, *_ in competitions
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
    settings: tuple[tuple[float, tuple[int, ...], tuple[str, ...], str], ...],
    ties: str,
) -> list[jax.Array]:
    """Is `select`, with what may be traced apart from what may not."""
    rankings = []
    together: dict[str | int, list[int]] = {}
    for i, ((scores, _), (_, block_axes, axis_name, block)) in enumerate(
        zip(arrays, settings, strict=True)
    ):
        names = varying_axes(scores, axis_name)
        rankings.append(_rank(scores, block_axes)._replace(axis_name=names))
        together.setdefault(block or i, []).append(i)
    contests = []
    for members in together.values():
        contest = Contest(tuple(rankings[i] for i in members), ())
        (_, traced), (static, *_) = arrays[members[0]], settings[members[0]]
        fraction = static if traced is None else traced
        chosen = limbs.fraction_of(fraction, contest.block_size)
        contests.append(contest._replace(chosen=chosen))
    brackets = search(contests).brackets
    masks = (masks_with_ties if ties == "all" else masks_without_ties)(
        contests, brackets
    )
    order = [i for members in together.values() for i in members]
    return [mask for _, mask in sorted(zip(order, masks, strict=True), key=_first)]


def _first(pair: tuple[int, jax.Array]) -> int:
    return pair[0]


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
    info = jnp.finfo(x.dtype)
    return Ranking(
        arrays=(x,),
        patterns=magnitude_patterns,
        shape=x.shape,
        block_axes=block_axes,
        bits=info.bits - 1,
        octave=2**info.nmant,
    )
