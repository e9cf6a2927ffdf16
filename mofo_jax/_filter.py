"""The filter around any transformation: the top fraction moves, the rest stays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mofo_jax import _blocks, _checks, _scores, _threshold

SCORES: dict[str, Callable[..., list[jax.Array]]] = {"momentum": _scores.momentum}


def momentum_filter(
    inner: optax.GradientTransformation,
    *,
    update_fraction: Any = 0.15,
    block_axes: Any = None,
    dense: Any = None,
    score: str = "momentum",
    ties: str = "all",
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
        `[layers, ...]` tensor its own. One tuple for all tensors, a pytree prefix of
        tuples, `PathRules`, or a callable from the tree of updates to such a prefix.
      dense: The tensors to leave unfiltered: a boolean, a pytree prefix of booleans,
        `PathRules`, or a callable. `NORMS_AND_BIASES` reproduces the authors' code.
      score: What ranks coordinates. `"momentum"` is the paper's.
      ties: `"all"` updates every coordinate that equals the threshold, as the authors'
        code does; `"exact"` updates exactly `k`, of equals those with the lowest
        row-major index in their block. Neither updates where the momentum is zero.
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
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            "`inner` must be an optax.GradientTransformation, "
            f"got {type(inner).__name__}"
        )
    _checks.check_choice("score", score, tuple(SCORES))
    _checks.check_choice("ties", ties, _threshold.TIES)
    if axis_name is not None and ties == "exact":
        raise ValueError(
            'ties="exact" breaks ties by an index that shards do not know: `axis_name` '
            'must be None or `ties` "all"'
        )
    options = _Options(
        update_fraction,
        () if block_axes is None else block_axes,
        False if dense is None else dense,
        () if axis_name is None else axis_name,
    )
    _check_values(options)
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
        competing = _competing(options, updates, state)
        if competing:
            scores = SCORES[score](new_state, updates, tuple(competing))
            competitions = [
                _threshold.Competition(jnp.asarray(scored), *settings)
                for scored, settings in zip(scores, competing.values(), strict=True)
            ]
            masks = _threshold.select(competitions, ties)
            for i, ranked, mask in zip(competing, competitions, masks, strict=True):
                moves = mask & (_threshold.magnitude_patterns(ranked.scores) > 0)
                dtype = jnp.result_type(gradients[i])
                steps[i] = jnp.where(moves, steps[i], 0).astype(dtype)
        new_state = jax.tree.map(_cast_like, new_state, state)
        return structure.unflatten(steps), new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


class _Options(NamedTuple):
    """The options that may differ from tensor to tensor, as the user gave them."""

    update_fraction: Any
    block_axes: Any
    dense: Any
    axis_name: Any


def _check_values(options: _Options) -> None:
    """Raises ValueError for a wrong value that is wrong whatever the tree."""
    for name, option in options._asdict().items():
        is_value, allowed = _VALUES[name]
        for value in _blocks.given_values(option, is_value):
            if not is_value(value):
                raise ValueError(f"`{name}` must be {allowed}, got {value!r}")
            if name == "update_fraction":
                _checks.check_fraction(name, value)


def _competing(
    options: _Options, updates: optax.Updates, state: optax.OptState
) -> dict[int, tuple]:
    """Returns fraction, block axes and axis names of the leaves that are filtered."""
    fractions, axes, dense, names = (
        _blocks.resolve(option, name, updates, *_VALUES[name])
        for name, option in options._asdict().items()
    )
    competing = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(updates)):
        fraction = fractions[i]
        if callable(fraction):
            fraction = fraction(_scores.step_count(state))
        name = _blocks.path_name(path)
        _checks.check_fraction("update_fraction", fraction, name)
        everything = _checks.is_static_number(fraction) and fraction == 1
        if dense[i] or everything or jnp.size(leaf) == 0:
            continue
        block_axes = _blocks.normalize_axes(axes[i], jnp.ndim(leaf), name)
        axis_name = (names[i],) if isinstance(names[i], str) else names[i]
        competing[i] = (fraction, block_axes, axis_name)
    return competing


def _is_fraction(value: Any) -> bool:
    return _checks.is_scalar(value) or callable(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_axis_name(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    )


# What one value of each option is, and how an error says so.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "update_fraction": (_is_fraction, "a number in (0, 1] or a schedule"),
    "block_axes": (_blocks.is_axes, "a tuple of axis numbers"),
    "dense": (_is_bool, "True or False"),
    "axis_name": (_is_axis_name, "a name or a tuple of names"),
}


def _cast_like(new: Any, old: Any) -> Any:
    """Keeps a state's floating-point dtypes, which a traced decay rate would widen."""
    if jnp.issubdtype(jnp.result_type(old), jnp.inexact):
        return jnp.asarray(new, jnp.result_type(old))
    return new
