"""A filter around any transformation, which moves only the top fraction."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mofo_jax import _checks, scores
from mofo_jax._moments import Moments, step_count
from mofo_jax._named_scores import ScoreLike, resolve_score
from mofo_jax._options.blocks import BlockAxes
from mofo_jax._options.path_rules import PerTensor, place
from mofo_jax._options.per_tensor import (
    AxisName,
    Filtered,
    Fraction,
    Options,
    find_filtered,
)
from mofo_jax._selection.limbs import fraction_of
from mofo_jax._selection.patterns import Contest, rank_magnitudes, ranked_together
from mofo_jax._selection.select import TIES, select
from mofo_jax._trees import like_updates

Ties = Literal["all", "exact"]


def momentum_filter(
    inner: optax.GradientTransformation,
    *,
    update_fraction: PerTensor[Fraction] = 0.15,
    block_axes: PerTensor[BlockAxes] | None = None,
    dense: PerTensor[bool] | None = None,
    score: ScoreLike = "momentum",
    ties: Ties = "all",
    unselected_scale: jax.typing.ArrayLike = 0.0,
    axis_name: PerTensor[AxisName] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the updates with the largest momenta and sets the others to zero.

    The filter runs `inner`, ranks the coordinates of every block by the magnitude of
    their momentum, and keeps the updates of the top fraction. A block is a set of
    coordinates that compete with one another: by default a whole tensor. With
    :math:`n` coordinates in a block,

    .. math::

      u'_i = u_i \text{ if } |m_i| \ge \tau \text{ and } m_i \ne 0, \text{ else } 0,

    where the threshold :math:`\tau` is the :math:`k`-th largest :math:`|m|` in the
    block and :math:`k = \max(1, \lfloor \alpha n \rfloor)`. The state is that of
    `inner`; the filter adds none. Selection is exact, uses no sort, and selects the
    same coordinates under any sharding, in Auto and Explicit meshes, unless computed
    scores differ by rounding only. Explicit axes must not divide a part of `AxisParts`,
    and must divide the block axes of tensors that share blocks in the same way.

    A NaN momentum ranks above infinity, so that divergence remains visible. The
    momentum is ranked as `inner` returns it, before it is cast to the dtype of the
    state.

    Args:
      inner: Any transformation that keeps a momentum: a tree named `mu`, `trace` or `m`
        anywhere in its state.
      update_fraction: The share of each block to update. A number in (0, 1], which may
        be traced; a schedule from the step count (from 0) to a number; or `PathRules`
        or a pytree prefix of the parameters with either. A static 1 disables the
        filter. For a traced float32 value, `k` is the floor of the exact product. It
        equals NumPy's float64 product for blocks of fewer than 2**29 coordinates, and
        differs from it by at most 1 for larger ones. Traced values outside of (0, 1]
        are clipped.
      block_axes: The axes of each tensor that index separate blocks. `()`, the default,
        makes a whole tensor one block, as in the paper; `(0,)` makes each layer of a
        `[layers, ...]` tensor a block; `(AxisParts(1, 9),)` splits axis 1 into 9 runs,
        such as the heads of a kernel that merges heads and head dimensions in one axis.
        Tensors with the same name share their blocks: `"model"` for all tensors makes
        them one block, `("layer", 0)` makes one block for each index of axis 0. The
        option is one such value for all tensors, a pytree prefix of values,
        `PathRules`, or a callable from the tree of updates to such a prefix.
      dense: The tensors to leave unfiltered: a boolean, a pytree prefix of booleans,
        `PathRules`, or a callable. `NORMS_AND_BIASES` reproduces the authors' code.
      score: How coordinates are ranked. `"momentum"` is the paper's method; the paper
        compares it with `"gradient"`, `"adam_ratio"` (see `scores.adam_ratio`) and
        `"random"` (see `scores.random`). `"update"` is the magnitude of the update that
        `inner` proposes, `"relative_momentum"` is :math:`|m| / (|\theta| + 10^{-8})`,
        and `"agreement"` is :math:`\max(m g, 0)`. It may also be a `scores.Score`, or a
        callable from a `scores.Tensor` to an array of the tensor's shape. Coordinates
        that score 0 do not move.
      ties: `"all"` updates every coordinate that equals the threshold, as the authors'
        code does. `"exact"` updates exactly `k`: of equal coordinates those with the
        lowest row-major index in their block, and in blocks across tensors those of the
        first tensor in the tree. With neither do coordinates that score 0 move.
      unselected_scale: The factor on the updates of coordinates that are not selected,
        in [0, 1). 0 leaves these coordinates unchanged. It is called gamma in Chang and
        Yuan, `MGUP <https://arxiv.org/abs/2606.17526>`_, 2025.
      axis_name: Inside `shard_map`, the mesh axis or axes that divide the blocks of
        tensors, so that all shards of a block are ranked together; may differ between
        tensors, in the same forms as `block_axes`. None outside of `shard_map`. Do not
        name an axis that divides only the block axes of a tensor, such as its layers,
        since its shards have different blocks, which would be ranked together. Under
        `check_vma=False`, name an axis only for tensors that are sharded over it, not
        for replicated ones.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state of `inner`. Updates of
      filtered tensors have the dtype of the gradients; those of the other tensors are
      returned as `inner` computes them.

    Raises:
      TypeError: If `inner` is not a gradient transformation, or `unselected_scale` is
        not a number.
      ValueError: If an option is invalid. Values that depend on the tree of updates are
        checked at the first update.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = mofo_jax.momentum_filter(optax.sgd(1.0, 0.9), update_fraction=0.5)
      >>> params = jnp.zeros(4)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.array([1., -3., 2., 0.]), state, params)
      >>> print(updates)
      [ 0.  3. -2.  0.]

    Source: Chen et al, `MoFO <https://arxiv.org/abs/2407.20999>`_, 2025, algorithm 1,
    with the choices that the paper leaves open taken from the authors' code.
    """
    _checks.check_transformation("`inner` must be", inner)
    rank = resolve_score(score)
    _checks.check_choice("ties", ties, TIES)
    _checks.check_number("unselected_scale", unselected_scale, "[0, 1)")
    if axis_name is not None and ties == "exact":
        raise ValueError(
            '`axis_name` must be None or `ties` "all": ties="exact" breaks ties by the '
            "row-major index in the whole tensor, which a shard does not know"
        )
    options = Options(update_fraction, block_axes, dense, axis_name)
    options.check()
    wrapped = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        proposed, new_state = wrapped.update(updates, state, params, **extra_args)
        gradients, structure = jax.tree.flatten(updates)
        steps = structure.flatten_up_to(proposed)
        moments = Moments(new_state, updates)

        @functools.cache
        def given() -> list[jax.Array] | None:
            if params is None:
                return None
            return jax.tree.leaves(like_updates(params, updates))

        def ranked(tensor: Filtered) -> jax.Array:
            i, path, axis_name = tensor.number, tensor.path, tensor.axis_name
            shown = scores.Tensor(
                gradients[i], steps[i], i, path, axis_name, moments, given
            )
            return _scored(rank, shown).reshape(tensor.blocks.shape)

        @functools.cache
        def count() -> jax.Array:
            return step_count(state, "`update_fraction` is a schedule")

        groups = find_filtered(options, updates)
        contests = [_contest(group, map(ranked, group), count) for group in groups]
        masks = select(contests, ties)
        zero = lax.optimization_barrier(jnp.zeros((), np.float32))
        for group, contest, selected in zip(groups, contests, masks, strict=True):
            for tensor, shown, mask in zip(
                group, contest.tensors, selected, strict=True
            ):
                i = tensor.number
                # A coordinate that scores zero stays, even if the threshold is zero.
                moves = (mask & (shown.patterns(*shown.arrays) > 0)).reshape(
                    jnp.shape(steps[i])
                )
                left = _left(steps[i], unselected_scale, zero)
                dtype = jnp.result_type(gradients[i])
                steps[i] = jnp.where(moves, steps[i], left).astype(dtype)
        new_state = jax.tree.map(_cast_like, new_state, state)
        return structure.unflatten(steps), new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scored(rank: scores.Function, tensor: scores.Tensor) -> jax.Array:
    """Returns the scores of a tensor.

    Raises:
      ValueError: If the shape or the dtype of the result is wrong.
    """
    scored = jnp.asarray(rank(tensor))
    shape = jnp.shape(tensor.gradient)
    if scored.shape != shape or not jnp.issubdtype(scored.dtype, jnp.inexact):
        raise ValueError(
            f"`score` must return floating-point or complex numbers of shape {shape} "
            f"for {place(tensor.path)}, got {scored.dtype}{list(scored.shape)}"
        )
    return jnp.abs(scored) if jnp.iscomplexobj(scored) else scored


def _contest(
    group: Sequence[Filtered],
    scored: Iterable[jax.Array],
    count: Callable[[], jax.Array],
) -> Contest:
    """Builds the contest among tensors that share their blocks from their scores."""
    arrays = list(scored)
    common = jnp.result_type(*arrays)
    tensors = ranked_together(
        [
            rank_magnitudes(array.astype(common), tensor.blocks.axes, tensor.axis_name)
            for tensor, array in zip(group, arrays, strict=True)
        ]
    )
    fraction = group[0].fraction
    if callable(fraction):
        fraction = fraction(count())
        if jnp.ndim(fraction):
            raise ValueError(
                "`update_fraction` must return a number, got an array of shape "
                f"{jnp.shape(fraction)}"
            )
        _checks.check_number("update_fraction", fraction, "(0, 1]", group[0].path)
    size = sum(tensor.block_size for tensor in tensors)
    return Contest(tensors, fraction_of(fraction, size))


def _left(step: jax.Array, unselected_scale: Any, zero: jax.Array) -> jax.Array:
    """Returns the steps of coordinates that are not selected."""
    # Multiplication by zero would turn infinity into NaN. A literal zero would be CSE'd
    # with the zeros that initialize gradient buffers and keep them alive on a GPU.
    none = zero.astype(step.dtype)
    if _checks.is_static_number(unselected_scale):
        return none if unselected_scale == 0 else step * unselected_scale
    return jnp.where(unselected_scale == 0, none, step * unselected_scale)


def _cast_like(new: Any, old: Any) -> Any:
    """Casts to the dtype of the old state, which a traced decay rate would widen."""
    if jnp.issubdtype(jnp.result_type(old), jnp.inexact):
        return jnp.asarray(new, jnp.result_type(old))
    return new
