"""The selection: the largest magnitudes of each block, and their threshold."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax import _checks
from mofo_jax._options.blocks import normalize_axes
from mofo_jax._selection import limbs
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from mofo_jax._selection.search import search
from mofo_jax._selection.ties import masks_with_ties, masks_without_ties

TIES = ("all", "exact")


def top_fraction_mask(
    x: jax.typing.ArrayLike,
    fraction: float | jax.Array,
    *,
    block_axes: tuple[int, ...] = (),
    ties: str = "all",
) -> jax.Array:
    r"""Returns a mask of the largest magnitudes of each block.

    Args:
      x: Real or complex floating-point array of any shape. A NaN ranks above infinity;
        zeros of either sign are equal and rank like any other magnitude.
      fraction: The share of each block to select, in (0, 1], shape (); may be traced.
      block_axes: The axes that index separate blocks; `()` makes `x` one block.
      ties: `"all"` selects all elements that equal the k-th largest, `"exact"` exactly
        `k = max(1, int(n * fraction))` of `n`, of equal elements those with the lowest
        row-major index.

    Returns:
      A boolean array of `x`'s shape.

    Raises:
      TypeError: If `x` is not of a floating-point or complex dtype, `fraction` is not a
        number, or `block_axes` is not a tuple.
      ValueError: If `fraction`, `block_axes` or `ties` is invalid.

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
    contest = _checked(x, fraction, block_axes)
    if contest is None:
        return jnp.zeros(jnp.shape(x), bool)
    ((mask,),) = select([contest], ties)
    return mask


def _checked(
    x: jax.typing.ArrayLike, fraction: float | jax.Array, block_axes: tuple[int, ...]
) -> Contest | None:
    """Checks arguments and returns their contest, or None if `x` is empty."""
    x = _checks.as_inexact(x)
    if not _checks.is_scalar(fraction):
        raise TypeError(f"`fraction` must be a number in (0, 1], got {fraction!r}")
    _checks.check_number("fraction", fraction, "(0, 1]")
    tensor = rank_magnitudes(x, normalize_axes(block_axes, x.ndim, "x"))
    if x.size == 0:
        return None
    return Contest((tensor,), limbs.fraction_of(fraction, tensor.block_size))


def magnitude_threshold(
    x: jax.typing.ArrayLike, k: int, *, block_axes: tuple[int, ...] = ()
) -> jax.Array:
    """Returns the k-th largest magnitude of each block.

    Args:
      x: Real or complex floating-point array with at least `k` elements in a block.
      k: The rank of the magnitude, from 1 for the largest to the size of a block.
      block_axes: The axes that index separate blocks; `()` makes `x` one block.

    Returns:
      The thresholds, real and in the precision of `x`. Their shape is that of `x`, with
      size 1 along all axes except the block axes.

    Raises:
      TypeError: If `x` is not of a floating-point or complex dtype, `k` is not an
        integer, or `block_axes` is not a tuple.
      ValueError: If `k` or `block_axes` is invalid.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> x = jnp.array([[1.0, -5.0, 2.0, 3.0], [8.0, 7.0, -9.0, 6.0]])
      >>> print(mofo_jax.magnitude_threshold(x, 2, block_axes=(0,)))
      [[3.]
       [8.]]

    Source: the threshold of the authors' code, which uses `torch.topk`.
    """
    x = _checks.as_inexact(x)
    tensor_axes = normalize_axes(block_axes, x.ndim, "x")
    tensor = rank_magnitudes(x, tensor_axes)
    size = tensor.block_size
    if not _checks.is_integer(k):
        raise TypeError(f"`k` must be an integer, got {k!r}")
    if not 1 <= k <= size:
        raise ValueError(f"`k` must be in [1, {size}], the size of a block, got {k}")
    if x.size == 0:  # There are no blocks.
        kept = (n if axis in tensor_axes else 1 for axis, n in enumerate(x.shape))
        return jnp.zeros(tuple(kept), x.real.dtype)
    wanted = limbs.constant(int(k), limbs.limbs_for(size))
    return _kth_largest(Contest((tensor,), wanted))


def selection_passes(
    x: jax.typing.ArrayLike,
    fraction: float | jax.Array,
    *,
    block_axes: tuple[int, ...] = (),
) -> jax.Array:
    """Returns the number of passes over `x` that a selection needs to find thresholds.

    In addition to these passes, every selection reads `x` once before them, for the
    mean and deviation of the magnitudes, and once after them, to compare it with the
    thresholds. Where possible, XLA fuses these two reads with the loops that compute
    the momentum and the updates.

    Args:
      x: Real or complex floating-point array of any shape.
      fraction: The share of each block to select, in (0, 1], shape ().
      block_axes: The axes that index separate blocks; `()` makes `x` one block.

    Returns:
      The number of passes, int32, shape (). It never exceeds the number of bits of a
      magnitude: 31 for float32, 15 for bfloat16.

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
    contest = _checked(x, fraction, block_axes)
    return jnp.zeros((), jnp.int32) if contest is None else _passes(contest)


@jax.jit
def _passes(contest: Contest) -> jax.Array:
    return search([contest]).passes


@jax.jit
def _kth_largest(contest: Contest) -> jax.Array:
    """Returns the smallest selected magnitude of each block; inner axes have size 1."""
    (bracket,) = search([contest]).brackets
    (tensor,) = contest.tensors
    # `low` is any pattern that separates the k largest from the others, so the smallest
    # magnitude that reaches it has yet to be found.
    patterns = tensor.patterns(*tensor.arrays)
    most = np.array(np.iinfo(patterns.dtype).max, patterns.dtype)
    reaching = jnp.where(tensor.reaching(bracket.low), patterns, most)
    smallest = jnp.min(reaching, axis=tensor.inner_axes, keepdims=True)
    return lax.bitcast_convert_type(smallest, jnp.finfo(tensor.arrays[0].dtype).dtype)


# Jitted, so that updates outside of `jax.jit` do not compile at every step.
@functools.partial(jax.jit, static_argnames="ties")
def select(contests: Sequence[Contest], ties: str) -> list[tuple[jax.Array, ...]]:
    """Selects the largest magnitudes of every block, in one joint search.

    Args:
      contests: The contests, whose tensors are not empty.
      ties: `"all"` selects all coordinates that equal the threshold, `"exact"` exactly
        the wanted number: of equal coordinates those that come first, by tensor and
        then in row-major order.

    Returns:
      For each contest, the masks of its tensors: boolean arrays of their shapes.

    Raises:
      ValueError: If `ties` is `"exact"` and a block has 2**31 coordinates or more.
    """
    masks = masks_with_ties if ties == "all" else masks_without_ties
    return masks(contests, search(contests).brackets)
