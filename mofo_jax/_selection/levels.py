"""Counts of the coordinates of a tensor that reach a level, as in a search."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mofo_jax._selection import limbs
from mofo_jax._selection.counting import Form, count_reaching, in_best_form
from mofo_jax._selection.limbs import Count
from mofo_jax._selection.patterns import Ranked

# From this size on, the faster form saves more time than its compilation takes.
_LARGE = 2**16


def count_levels(
    levels: Callable[..., jax.Array], *arrays: Any
) -> tuple[jax.Array, jax.Array]:
    """Counts the coordinates at level 1 or above, and at level 2.

    Args:
      levels: A function from `arrays` to the level of each coordinate, 0, 1 or 2.
      arrays: Its arguments, all of one shape.

    Returns:
      The two counts, which are exact before they are rounded to float32, of shape ().
    """
    if np.size(arrays[0]) == 0:
        return jnp.float32(0), jnp.float32(0)
    return _jitted_count(levels, *map(jnp.asarray, arrays))


def _count(
    levels: Callable[..., jax.Array], *arrays: jax.Array
) -> tuple[jax.Array, jax.Array]:
    ranked = Ranked(arrays, levels, arrays[0].shape, block_axes=(), bits=2)
    size = limbs.limbs_for(ranked.block_size)

    def reached(form: Form) -> Count:
        # Both levels are counted even if one is needed: on CPU, a reduction of one
        # operand is ten times as slow.
        pieces = count_reaching(ranked, jnp.array((1, 2)), size, form)
        return tuple(jnp.concatenate(limb) for limb in zip(*pieces, strict=True))

    large = ranked.block_size >= _LARGE
    both = in_best_form(reached) if large else reached("sums")
    once, twice = limbs.to_float(both)
    return once, twice


# Jitted, so that the levels are not stored when this runs outside of `jax.jit`.
_jitted_count = jax.jit(_count, static_argnums=0)
