"""How many coordinates of a tensor have moved, by whatever is called moving."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._selection import limbs
from mofo_jax._selection.counting import Form, Ranking, count_reaching, in_best_form
from mofo_jax._selection.limbs import Count
from mofo_jax._selection.select import magnitude_patterns

# From this size on the faster code saves more time than it takes to compile.
_LARGE = 2**16


def count(levels: Callable[..., jax.Array], *arrays: Any) -> tuple[Count, Count]:
    """Counts the coordinates at level 1 or above, and at level 2.

    Args:
      levels: Computes a number from 0 to 2 for each coordinate.
      arrays: What it computes it from, all of one shape.

    Returns:
      Two counts, words of shape ().
    """
    if np.size(arrays[0]) == 0:
        return limbs.constant(0, 1), limbs.constant(0, 1)
    return _jitted_count(levels, *map(jnp.asarray, arrays))


def _count_levels(
    levels: Callable[..., jax.Array], *arrays: jax.Array
) -> tuple[Count, Count]:
    ranking = Ranking(arrays, levels, arrays[0].shape, block_axes=(), bits=2)
    words = limbs.words_needed(ranking.block_size)

    def reached(form: Form) -> Count:
        # Both levels where one is asked for, too: a reduction of one operand is ten
        # times as slow on the CPU.
        pieces = count_reaching(ranking, jnp.array((1, 2)), words, form)
        return tuple(jnp.concatenate(word) for word in zip(*pieces, strict=True))

    large = ranking.block_size >= _LARGE
    both = in_best_form(reached) if large else reached("sums")
    return tuple(word[0] for word in both), tuple(word[1] for word in both)


# Compiled here, so that outside of `jax.jit` no tensor of levels is made.
_jitted_count = jax.jit(_count_levels, static_argnums=0)


def nonzero(update: jax.Array) -> jax.Array:
    """Returns 1 where an update moves its coordinate."""
    return _moves(update).astype(np.uint8)


def nonzero_and_before(update: jax.Array, previous: jax.Array) -> jax.Array:
    """Returns 1 where an update moves its coordinate, 2 if the one before did too."""
    moves = _moves(update)
    return moves.astype(np.uint8) + (moves & _moves(previous)).astype(np.uint8)


def _moves(update: jax.Array) -> jax.Array:
    if jnp.issubdtype(update.dtype, jnp.inexact):
        return magnitude_patterns(update) > 0
    return update != 0


def differs(x: jax.Array, start: jax.Array) -> jax.Array:
    """Returns 1 where the bits of two arrays differ, but for the sign of a zero."""
    start = start.astype(x.dtype)
    if jnp.iscomplexobj(x):
        return differs(x.real, start.real) | differs(x.imag, start.imag)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return (x != start).astype(np.uint8)
    magnitude, start_magnitude = magnitude_patterns(x), magnitude_patterns(start)
    unsigned = magnitude.dtype
    changed = lax.bitcast_convert_type(x, unsigned) != lax.bitcast_convert_type(
        start, unsigned
    )
    return (changed & ((magnitude | start_magnitude) > 0)).astype(np.uint8)


def total(counts: Sequence[Count], size: int) -> Count:
    """Adds up counts that come to at most `size`."""
    words = limbs.words_needed(size)
    zero = jnp.zeros((), limbs.WORD)
    padded = [(*count, *[zero] * (words - len(count))) for count in counts]
    stacked = tuple(jnp.stack(word) for word in zip(*padded, strict=True))
    if not stacked:
        return limbs.constant(0, words)
    return limbs.sum_exactly(
        stacked, lambda word: jnp.sum(word, dtype=word.dtype), len(counts), words
    )


def ratio(part: Count, whole: Count) -> jax.Array:
    """Returns part / whole as float32, 0 of nothing."""
    of = limbs.to_float(whole)
    return jnp.where(of > 0, limbs.to_float(part) / jnp.maximum(of, 1), 0)
