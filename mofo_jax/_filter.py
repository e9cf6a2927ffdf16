"""The filter around any transformation: the top fraction moves, the rest stays."""

from collections.abc import Iterable, Sequence
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
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from mofo_jax._selection.select import TIES, select

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
    r"""Keeps the updates with the largest momenta and zeroes the rest.

    Runs `inner`, ranks the coordinates of every block by the magnitude of their
    momentum, and lets only the top fraction of `inner`'s updates through:

    .. math::

      u'_i = u_i \text{ if } |m_i| \ge \tau \text{ and } m_i \ne 0, \text{ else } 0,

    with :math:`\tau` the :math:`k`-th largest :math:`|m|` in the block and
    :math:`k = \max(1, \lfloor \alpha n \rfloor)`. The state is `inner`'s own and
    nothing more. Selection is exact, needs no sort, and gives the same coordinates
    under any sharding, in Auto and Explicit meshes.

    A NaN momentum ranks above infinity, so that divergence stays visible. The momentum
    that `inner` returns is ranked, before it is cast to the dtype that its state keeps.

    Args:
      inner: Any transformation that keeps a momentum: a tree named `mu` or `trace`
        anywhere in its state.
      update_fraction: The share of each block to update. A number in (0, 1], which may
        be traced; a schedule from the step count (from 0) to a number; or a pytree
        prefix of the parameters holding either. A static 1 filters nothing. For a
        traced float32 value `k` is the floor of the exact product: at most one from
        NumPy's float64 product, and equal to it for blocks below 2**29 coordinates.
        Values outside of the range that are only known when traced are clipped.
      block_axes: The axes of each tensor that index separate blocks. None or `()` makes
        a whole tensor one block, as in the paper; `(0,)` gives each layer of a
        `[layers, ...]` tensor its own; `(AxisParts(1, 9),)` cuts axis 1 into 9 runs, as
        the heads of a kernel that keeps them in one axis. A name makes tensors share
        their blocks: `"model"` for all is one block, `("layer", 0)` one for each index
        of axis 0. One such value for all tensors, a pytree prefix of them, `PathRules`,
        or a callable from the tree of updates to such a prefix.
      dense: The tensors to leave unfiltered: a boolean, a pytree prefix of booleans,
        `PathRules`, or a callable. `NORMS_AND_BIASES` reproduces the authors' code.
      score: What ranks coordinates. `"momentum"` is the paper's; its other three are
        `"gradient"`, `"adam_ratio"` (see `scores.adam_ratio`) and `"random"`
        (`scores.random`). `"update"` is the magnitude of what `inner` proposes,
        `"relative_momentum"` is :math:`|m| / (|\theta| + 10^{-8})`, `"agreement"`
        :math:`\max(m g, 0)`. Or a `scores.Score`, or a callable from a `scores.Tensor`
        to an array of the tensor's shape. What scores 0 does not move.
      ties: `"all"` updates every coordinate that equals the threshold, as the authors'
        code does; `"exact"` updates exactly `k`, of equals those with the lowest
        row-major index in their block, and with blocks across tensors in the first of
        the tree. Neither updates where the momentum is zero.
      unselected_scale: The factor on the updates of coordinates that are not selected,
        in [0, 1): MGUP's gamma. 0 leaves these coordinates where they are.
      axis_name: Inside `shard_map`, the mesh axis or axes over which tensors are
        sharded, so that shards are ranked together; given like the other options.
        Elsewhere None. Under `check_vma=False` an axis must be named only for tensors
        that are sharded over it, not for replicated ones.

    Returns:
      An `optax.GradientTransformationExtraArgs` with the state of `inner`. Updates have
      the dtype of the gradients; unfiltered ones are as `inner` returns them.

    Raises:
      TypeError: If `inner` is not a gradient transformation.
      ValueError: If an option has a wrong value, here or, where only the tree tells, at
        the first update.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = mofo_jax.momentum_filter(optax.sgd(1.0, 0.9), update_fraction=0.5)
      >>> params = jnp.zeros(4)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.array([1., -3., 2., 0.]), state, params)
      >>> print(updates)
      [ 0.  3. -2.  0.]

    Source: Chen et al, `MoFO <https://arxiv.org/abs/2407.20999>`_, 2024, algorithm 1,
    with the choices that the paper leaves open taken from the authors' code.
    """
    _checks.check_transformation("`inner` must be", inner)
    rank = resolve_score(score)
    _checks.check_choice("ties", ties, TIES)
    _checks.check_number("unselected_scale", unselected_scale, 0, 1)
    if axis_name is not None and ties == "exact":
        raise ValueError(
            'ties="exact" breaks ties by an index that shards do not know: `axis_name` '
            'must be None or `ties` "all"'
        )
    options = Options(
        update_fraction,
        () if block_axes is None else block_axes,
        False if dense is None else dense,
        () if axis_name is None else axis_name,
    )
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

        def ranked(tensor: Filtered) -> jax.Array:
            i, path, axis_name = tensor.number, tensor.path, tensor.axis_name
            shown = scores.Tensor(
                gradients[i], steps[i], i, path, axis_name, moments, params
            )
            return _scored(rank, shown).reshape(tensor.blocks.shape)

        groups = find_filtered(options, updates)
        contests = [_contest(group, map(ranked, group), state) for group in groups]
        masks = select(contests, ties)
        zero = lax.optimization_barrier(jnp.zeros((), np.float32))
        for group, contest, selected in zip(groups, contests, masks, strict=True):
            for tensor, shown, mask in zip(
                group, contest.tensors, selected, strict=True
            ):
                i = tensor.number
                # A coordinate without any momentum stays, even where zeros are tied.
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
    """Returns the scores of a tensor, or raises ValueError for what is no score."""
    scored = jnp.asarray(rank(tensor))
    shape = jnp.shape(tensor.gradient)
    if scored.shape != shape or not jnp.issubdtype(scored.dtype, jnp.inexact):
        raise ValueError(
            f"`score` must return floating-point or complex numbers of shape {shape} "
            f"for {place(tensor.path)}, got {scored.dtype}{list(scored.shape)}"
        )
    return jnp.abs(scored) if jnp.iscomplexobj(scored) else scored


def _contest(
    group: Sequence[Filtered], scored: Iterable[jax.Array], state: optax.OptState
) -> Contest:
    """Returns the contest of tensors that share their blocks, given their scores."""
    arrays = list(scored)
    common = jnp.result_type(*arrays)
    tensors = tuple(
        rank_magnitudes(array.astype(common), tensor.blocks.axes, tensor.axis_name)
        for tensor, array in zip(group, arrays, strict=True)
    )
    fraction = group[0].fraction
    if callable(fraction):
        fraction = fraction(step_count(state, "`update_fraction` is a schedule"))
        _checks.check_fraction("update_fraction", fraction, group[0].path)
    size = sum(tensor.block_size for tensor in tensors)
    return Contest(tensors, fraction_of(fraction, size))


def _left(step: jax.Array, unselected_scale: Any, zero: jax.Array) -> jax.Array:
    """Returns what is left of the step of coordinates that are not selected."""
    # A product would turn an infinity into a NaN. A literal zero would be merged with
    # the zeros into which gradients are summed, and keep these alive on a GPU.
    is_zero = _checks.is_static_number(unselected_scale) and unselected_scale == 0
    return zero.astype(step.dtype) if is_zero else step * unselected_scale


def _cast_like(new: Any, old: Any) -> Any:
    """Keeps a state's floating-point dtypes, which a traced decay rate would widen."""
    if jnp.issubdtype(jnp.result_type(old), jnp.inexact):
        return jnp.asarray(new, jnp.result_type(old))
    return new
