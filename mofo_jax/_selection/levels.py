"""How many coordinates of a tensor reach a level, counted as a search counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mofo_jax._selection import limbs
from mofo_jax._selection.counting import Form, count_reaching, in_best_form
from mofo_jax._selection.limbs import Count
from mofo_jax._selection.patterns import Ranked

# From this size on the faster code saves more time than it takes to compile.
_LARGE = 2**16


def count_levels(
    levels: Callable[..., jax.Array], *arrays: Any
) -> tuple[jax.Array, jax.Array]:
    """Counts the coordinates at level 1 or above, and at level 2.

    Args:
      levels: Computes a number from 0 to 2 for each coordinate.
      arrays: What it computes it from, all of one shape.

    Returns:
      Two exact counts, rounded to float32 in the end, shape ().
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
        # Both levels where one is asked for, too: a reduction of one operand is ten
        # times as slow on the CPU.
        pieces = count_reaching(ranked, jnp.array((1, 2)), size, form)
        return tuple(jnp.concatenate(limb) for limb in zip(*pieces, strict=True))

    large = ranked.block_size >= _LARGE
    both = in_best_form(reached) if large else reached("sums")
    once, twice = limbs.to_float(both)
    return once, twice


# Compiled here, so that outside of `jax.jit` no tensor of levels is made.
_jitted_count = jax.jit(_count, static_argnums=0)
