"""Merging of the weights before and after training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mofo_jax import _checks
from mofo_jax._dtypes import widen
from mofo_jax._filter import Ties
from mofo_jax._options.blocks import (
    BLOCK_AXES,
    BlockAxes,
    Blocks,
    resolve_own_blocks,
)
from mofo_jax._options.path_rules import Kind, PerTensor, named_leaves, place
from mofo_jax._selection.limbs import fraction_of
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from mofo_jax._selection.select import TIES, select


def interpolate_weights(
    start: optax.Params, end: optax.Params, share: Any
) -> optax.Params:
    r"""Interpolates linearly between the weights before and after training.

    .. math::

      \theta = (1 - \alpha) \, \theta_0 + \alpha \, \theta_1

    Args:
      start: The parameters before training, floating-point or complex arrays.
      end: The parameters after training, of the same structure and shapes.
      share: The weight :math:`\alpha` of `end`, in [0, 1], shape (); may be traced. 0
        gives exactly `start`, 1 exactly `end`.

    Returns:
      A tree with the structure, shapes and dtypes of `end`.

    Raises:
      TypeError: If a parameter is not of a floating-point or complex dtype.
      ValueError: If `share` is out of range, or the trees differ.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> start, end = {"w": jnp.array([0., 4.])}, {"w": jnp.array([2., 0.])}
      >>> for share in (0.0, 0.25, 0.5, 1.0):
      ...   print(mofo_jax.baselines.interpolate_weights(start, end, share)["w"])
      [0. 4.]
      [0.5 3. ]
      [1. 2.]
      [2. 0.]

    Source: Wortsman et al, `Robust fine-tuning of zero-shot models
    <https://arxiv.org/abs/2109.01903>`_, 2022 (WiSE-FT).
    """
    _checks.check_number("share", share, "[0, 1]")
    _check_pair(start, end)

    if hasattr(share, "dtype"):
        share = widen(share)

    def between(before: jax.Array, after: jax.Array) -> jax.Array:
        first, second = widen(before), widen(after)
        mixed = jnp.add((1 - share) * first, share * second)
        # A product of 0 and of a number that is not finite is NaN.
        mixed = jnp.where(share == 0, first, jnp.where(share == 1, second, mixed))
        return mixed.astype(jnp.result_type(after))

    return jax.tree.map(between, start, end)


def prune_difference(
    start: optax.Params,
    end: optax.Params,
    fraction: PerTensor[jax.typing.ArrayLike],
    *,
    block_axes: PerTensor[BlockAxes] | None = None,
    ties: Ties = "all",
) -> optax.Params:
    r"""Keeps a fraction of the changes of training, and undoes the others.

    With :math:`\Delta = \theta_1 - \theta_0`, coordinates are scored by their change
    minus a penalty for changes that are large relative to the weight:

    .. math::

      s_i = |\Delta_i| -
        \mathrm{mean}(|\theta_0|) \, \frac{|\Delta_i|}{|\theta_{0,i}|}

    Of the :math:`n` coordinates of each tensor, the
    :math:`\max(1, \lfloor \alpha n \rfloor)` with the largest scores keep their trained
    values, and the others return to :math:`\theta_0`. A coordinate that moved away from
    zero ranks last, and one that did not move scores 0. In a tensor that was all zeros
    before training, the score is the change alone.

    Args:
      start: The parameters before training, floating-point or complex arrays.
      end: The parameters after training, of the same structure and shapes.
      fraction: The share of each block to keep, in (0, 1]; may be traced, or be given
        for each tensor, as in `momentum_filter`. The paper keeps 0.1.
      block_axes: The axes of each tensor that index separate blocks, each with its own
        mean and selection; given as in `momentum_filter`, but without names, since
        tensors do not share blocks.
      ties: `"all"` keeps all coordinates that equal the lowest score kept; `"exact"`
        keeps exactly the wanted number, of equal coordinates those with the lowest
        row-major index.

    Returns:
      A tree with the structure, shapes and dtypes of `end`.

    Raises:
      TypeError: If a parameter is not of a floating-point or complex dtype.
      ValueError: If an option is invalid, or the trees differ.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> start = jnp.array([1.0, -0.1, 2.0, 4.0])
      >>> end = jnp.array([1.2, -0.5, 2.3, 4.1])
      >>> for fraction in (0.25, 0.5, 1.0):
      ...   print(mofo_jax.baselines.prune_difference(start, end, fraction))
      [ 1.  -0.1  2.   4.1]
      [ 1.  -0.1  2.3  4.1]
      [ 1.2 -0.5  2.3  4.1]

    Source: Huang et al, `Forgetting-aware pruning
    <https://arxiv.org/abs/2509.08255>`_, 2025.
    """
    _checks.check_choice("ties", ties, TIES)
    BLOCK_AXES.check(block_axes)
    _check_pair(start, end)
    paths = [path for path, _ in named_leaves(end)]
    leaves, structure = jax.tree.flatten(end)
    before = structure.flatten_up_to(start)
    blocks = resolve_own_blocks(block_axes, end, "prune_difference")
    contests = {}
    for i, share in enumerate(_FRACTION.resolve(fraction, end)):
        _checks.check_number("fraction", share, "(0, 1]", paths[i])
        everything = _checks.is_exactly(share, 1)
        if everything or jnp.size(leaves[i]) == 0:
            continue
        scores = _as_magnitude(_score(before[i], leaves[i], blocks[i]))
        tensor = rank_magnitudes(scores, blocks[i].axes)
        contests[i] = Contest((tensor,), fraction_of(share, tensor.block_size))
    masks = select(list(contests.values()), ties)
    for i, (mask,) in zip(contests, masks, strict=True):
        kept = mask.reshape(jnp.shape(leaves[i]))
        dtype = jnp.result_type(leaves[i])
        leaves[i] = jnp.where(kept, leaves[i], before[i]).astype(dtype)
    return structure.unflatten(leaves)


_FRACTION: Kind[jax.typing.ArrayLike] = Kind(
    "fraction", _checks.is_scalar, "a number in (0, 1]"
)


def _score(before: jax.Array, after: jax.Array, blocks: Blocks) -> jax.Array:
    """Returns the score of each coordinate, in the shape that has the block axes."""
    change, size = (
        jnp.abs(x).reshape(blocks.shape)
        for x in (widen(after) - widen(before), widen(before))
    )
    mean = jnp.mean(size, axis=blocks.inner_axes, keepdims=True)
    relative = change / jnp.where((change == 0) | (mean == 0), 1, size)
    return change - mean * relative


def _as_magnitude(score: jax.Array) -> jax.Array:
    """Returns floats whose magnitudes have the order of the signed scores.

    The bits of floats, read as unsigned integers, have the order of the floats if the
    sign bit of positive numbers and all bits of negative numbers are flipped. The
    selection compares all bits except the sign, so the last bit is dropped: two scores
    that differ only in the last of their 24 significant bits are tied. Some of the
    results are NaN, which does not matter, since they are only compared.
    """
    width = 8 * score.dtype.itemsize
    unsigned, signed = np.dtype(f"uint{width}"), np.dtype(f"int{width}")
    bits = lax.bitcast_convert_type(score, signed)
    turned = jnp.where(bits < 0, ~bits, bits ^ np.iinfo(signed).min)
    ordered = lax.bitcast_convert_type(turned, unsigned)
    return lax.bitcast_convert_type(ordered >> unsigned.type(1), score.dtype)


def _check_pair(start: optax.Params, end: optax.Params) -> None:
    """Raises an error unless two trees of weights have the same structure and shapes.

    Their leaves must be of floating-point or complex dtypes.
    """
    if jax.tree.structure(start) != jax.tree.structure(end):
        raise ValueError(
            "`start` and `end` must have the same structure, got "
            f"{jax.tree.structure(start)} and {jax.tree.structure(end)}"
        )
    for (path, before), after in zip(
        named_leaves(start), jax.tree.leaves(end), strict=True
    ):
        parameter = place(path)
        if jnp.shape(before) != jnp.shape(after):
            raise ValueError(
                f"`start` and `end` for {parameter} must have the same shape, got "
                f"{jnp.shape(before)} and {jnp.shape(after)}"
            )
        for leaf in (before, after):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    f"{parameter} must be of a floating-point or complex dtype, got "
                    f"{jnp.result_type(leaf)}"
                )
