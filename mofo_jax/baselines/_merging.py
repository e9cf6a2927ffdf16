"""What is done after training: merging the weights before and after it."""

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
from mofo_jax._options.path_rules import Kind, PerTensor, path_name, place
from mofo_jax._selection.limbs import fraction_of
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from mofo_jax._selection.select import TIES, select


def interpolate_weights(
    start: optax.Params, end: optax.Params, share: Any
) -> optax.Params:
    r"""Returns the weights on the straight line between those before and after.

    .. math::

      \theta = (1 - \alpha) \, \theta_0 + \alpha \, \theta_1

    Args:
      start: The parameters before training, floating-point or complex arrays.
      end: The parameters after it, of the same structure and shapes.
      share: How far to go, in [0, 1], shape (); may be traced. 0 is exactly `start`, 1
        exactly `end`.

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
    if _checks.is_static_number(share) and not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], got {share!r}")
    _check_pair(start, end)

    def between(before: jax.Array, after: jax.Array) -> jax.Array:
        mixed = jnp.add((1 - share) * widen(before), share * widen(after))
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
    r"""Undoes training where it changed much for what was there, and keeps the rest.

    With :math:`\Delta = \theta_1 - \theta_0`, the coordinates of each tensor with the
    largest

    .. math::

      s_i = |\Delta_i| -
        \mathrm{mean}(|\theta_0|) \, \frac{|\Delta_i|}{|\theta_{0,i}|}

    stay as training left them, :math:`\max(1, \lfloor \alpha n \rfloor)` of :math:`n`,
    and the others return to :math:`\theta_0`. A coordinate that moved away from zero
    comes last, one that did not move scores 0, and in a tensor that began with nothing
    but zeros the change alone decides.

    Args:
      start: The parameters before training, floating-point or complex arrays.
      end: The parameters after it, of the same structure and shapes.
      fraction: The share of each block to keep, in (0, 1]; may be traced, or be given
        for each tensor, as in `momentum_filter`. The paper keeps 0.1.
      block_axes: The axes of each tensor that index separate blocks, each with a mean
        and a selection of its own; given as in `momentum_filter`, without names:
        tensors do not share blocks.
      ties: `"all"` keeps all that equal the last score kept, `"exact"` the wanted
        number, of equals those with the lowest row-major index.

    Returns:
      A tree with the structure, shapes and dtypes of `end`.

    Raises:
      TypeError: If a parameter is not of a floating-point or complex dtype.
      ValueError: If an option has a wrong value, or the trees differ.

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
    BLOCK_AXES.check(() if block_axes is None else block_axes)
    _check_pair(start, end)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(end)]
    leaves, structure = jax.tree.flatten(end)
    before = structure.flatten_up_to(start)
    blocks = resolve_own_blocks(block_axes, end, "prune_difference")
    contests = {}
    for i, share in enumerate(_FRACTION.resolve(fraction, end)):
        _checks.check_fraction("fraction", share, paths[i])
        everything = _checks.is_static_number(share) and share == 1
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
    """Returns each coordinate's change less its change relative to its size.

    The scores have the shape that has the block axes.
    """
    change, size = (
        jnp.abs(x).reshape(blocks.shape)
        for x in (widen(after) - widen(before), widen(before))
    )
    mean = jnp.mean(size, axis=blocks.inner_axes, keepdims=True)
    relative = change / jnp.where((change == 0) | (mean == 0), 1, size)
    return change - mean * relative


def _as_magnitude(score: jax.Array) -> jax.Array:
    """Returns floats whose magnitudes are in the order of signed numbers.

    A float's bits, read as an unsigned integer, are in its order once the sign bit of
    the positive and every bit of the negative is turned. The selection compares all
    bits but the sign, so one has to go: the last. Two scores that differ in nothing but
    the last of their 24 binary digits are therefore tied. That some of these bit
    patterns mean NaN is no matter, since no arithmetic depends on them.
    """
    width = 8 * score.dtype.itemsize
    unsigned, signed = np.dtype(f"uint{width}"), np.dtype(f"int{width}")
    bits = lax.bitcast_convert_type(score, signed)
    turned = jnp.where(bits < 0, ~bits, bits ^ np.iinfo(signed).min)
    ordered = lax.bitcast_convert_type(turned, unsigned)
    return lax.bitcast_convert_type(ordered >> unsigned.type(1), score.dtype)


def _check_pair(start: optax.Params, end: optax.Params) -> None:
    """Raises an error unless two trees may be the weights before and after training."""
    if jax.tree.structure(start) != jax.tree.structure(end):
        raise ValueError(
            "`start` and `end` must have the same structure, got "
            f"{jax.tree.structure(start)} and {jax.tree.structure(end)}"
        )
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(end), strict=True
    ):
        parameter = place(path_name(path))
        if jnp.shape(before) != jnp.shape(after):
            raise ValueError(
                f"`start` and `end` for {parameter} must have one shape, got "
                f"{jnp.shape(before)} and {jnp.shape(after)}"
            )
        for leaf in (before, after):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    f"{parameter} must be of a floating-point or complex dtype, got "
                    f"{jnp.result_type(leaf)}"
                )
