"""The filter around any transformation: the top fraction moves, the rest stays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mofo_jax import _checks, _moments, scores
from mofo_jax._options import blocks
from mofo_jax._options.path_rules import place
from mofo_jax._options.per_tensor import Options, Settings, check_values, find_competing
from mofo_jax._selection import select


def momentum_filter(
    inner: optax.GradientTransformation,
    *,
    update_fraction: Any = 0.15,
    block_axes: Any = None,
    dense: Any = None,
    score: Any = "momentum",
    ties: str = "all",
    rest: jax.typing.ArrayLike = 0.0,
    axis_name: Any = None,
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
      rest: What the updates of coordinates that are not selected are multiplied by, in
        [0, 1): MGUP's gamma. 0 leaves them where they are.
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
    rank = scores.resolve(score)
    _checks.check_choice("ties", ties, select.TIES)
    _checks.check_number("rest", rest, 0, 1)
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
    check_values(options)
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
        kept = _moments.Kept(new_state, updates)
        competing = find_competing(options, updates, state)
        ranked = {}
        for i, path, _, divided, axis_name in competing:
            given = gradients[i], steps[i], i, path, axis_name
            tensor = scores.Tensor(*given, kept, params)
            ranked[i] = _scored(rank, tensor, divided)
        ranked = _comparable(competing, ranked)
        competitions = [
            select.Competition(ranked[i], share, divided.axes, names, divided.name)
            for i, _, share, divided, names in competing
        ]
        masks = select.select(competitions, ties)
        nothing = lax.optimization_barrier(jnp.zeros((), np.float32))
        for settings, mask in zip(competing, masks, strict=True):
            i = settings.number
            moves = mask & (select.magnitude_patterns(ranked[i]) > 0)
            moves = moves.reshape(jnp.shape(steps[i]))
            dtype = jnp.result_type(gradients[i])
            left = _rest(steps[i], rest, nothing)
            steps[i] = jnp.where(moves, steps[i], left).astype(dtype)
        new_state = jax.tree.map(_cast_like, new_state, state)
        return structure.unflatten(steps), new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scored(
    rank: scores.Function, tensor: scores.Tensor, divided: blocks.Blocks
) -> jax.Array:
    """Returns the scores of a tensor, in the shape that has its block axes."""
    scored = jnp.asarray(rank(tensor))
    shape = jnp.shape(tensor.gradient)
    if scored.shape != shape or not jnp.issubdtype(scored.dtype, jnp.inexact):
        raise ValueError(
            f"`score` must return floating-point or complex numbers of shape {shape} "
            f"for {place(tensor.path)}, got {scored.dtype}{list(scored.shape)}"
        )
    return scored.reshape(divided.shape)


def _comparable(
    competing: Sequence[Settings], ranked: dict[int, jax.Array]
) -> dict[int, jax.Array]:
    """Gives the scores of tensors that share a block one real dtype."""
    real = {i: jnp.abs(x) if jnp.iscomplexobj(x) else x for i, x in ranked.items()}
    members: dict[str, list[int]] = {}
    for settings in competing:
        if settings.blocks.name:
            members.setdefault(settings.blocks.name, []).append(settings.number)
    for numbers in members.values():
        common = jnp.result_type(*(real[i] for i in numbers))
        real |= {i: real[i].astype(common) for i in numbers}
    return real


def _rest(step: jax.Array, rest: Any, nothing: jax.Array) -> jax.Array:
    """Returns what is left of the step of coordinates that are not selected."""
    # A product would turn an infinity into a NaN. And a zero that the compiler knows it
    # shares with the zeros that gradients are summed into: whole tensors, which a GPU
    # then keeps to the end of the step.
    is_zero = _checks.is_static_number(rest) and rest == 0
    return nothing.astype(step.dtype) if is_zero else step * rest


def _cast_like(new: Any, old: Any) -> Any:
    """Keeps a state's floating-point dtypes, which a traced decay rate would widen."""
    if jnp.issubdtype(jnp.result_type(old), jnp.inexact):
        return jnp.asarray(new, jnp.result_type(old))
    return new
