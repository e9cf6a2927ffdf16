"""Master weights for parameters in bfloat16 or float16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._dtypes import dtype_of, floating_dtype, is_floating, round_to
from mofo_jax._trees import like_updates, with_all_leaves


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
      remainder: The master weights minus the parameters, shaped like the parameters.
      inner_state: The state of the wrapped transformation.
    """

    remainder: optax.Params
    inner_state: optax.OptState


def master_weights(
    inner: optax.GradientTransformation,
    *,
    remainder_dtype: jax.typing.DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Accumulates steps that are too small for parameters of a narrow dtype.

    A bfloat16 parameter of 1 never changes under steps of 0.0019, no matter how many.
    Here the state keeps a remainder :math:`r`, so that :math:`\theta + r` is the master
    weight and the parameter :math:`\theta` its rounded value. A step :math:`u` of
    `inner` is added to their sum:

    .. math::

      \theta' = \mathrm{round}(\theta + (r + u)), \qquad
      r' = (\theta + (r + u)) - \theta'

    so that :math:`\theta' + r' = \theta + r + u` except for the rounding of
    :math:`r + u` and :math:`r'`, both about as large as the step or half a unit in the
    last place of :math:`\theta`. This is more precise than master weights in float32
    and stores no second copy of the parameter. The new remainder refers to the
    parameter that `optax.apply_updates` computes, even if rounding the update to the
    dtype of the gradients makes that differ from :math:`\theta'`.

    Where the step of `inner` is exactly zero, neither the parameter nor its remainder
    changes. Coordinates that a filter does not select therefore stay unchanged, even if
    their remainder is half a unit in the last place.

    `inner` receives gradients and parameters in float32, or in float64 for parameters
    of that precision; at an update the parameters are the master weights. Its moments
    are therefore in float32 too. This is necessary: a second moment in bfloat16 with a
    decay rate of 0.999 never decays, since the product rounds back to the old value.

    Wrap everything that computes the step: ``master_weights(mofo(...))``. A
    transformation that changes the updates afterwards, such as a filter or a later
    member of a chain, is not taken into account. Wrappers that discard updates together
    with the new state, such as `optax.MultiSteps` and `optax.apply_if_finite`, are
    supported.

    Args:
      inner: A complete optimizer, such as `mofo` or `optax.adamw`, whose updates are to
        be added to the parameters.
      remainder_dtype: The floating-point dtype of the remainder. `"float32"` takes 4
        bytes per parameter. `"bfloat16"` takes 2, and gives bfloat16 parameters master
        weights of 17 significant bits: a step smaller than 2**-17 of the parameter may
        be lost.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `MasterWeightsState`. It needs
      `params`; updates have the dtype of the gradients. For parameters in float32 or
      float64 it computes a compensated sum. Complex and integer parameters are updated
      by `inner` alone.

    Raises:
      TypeError: If `inner` is not a gradient transformation.
      ValueError: If `remainder_dtype` is not a floating-point dtype of at least 16
        bits, or, at an update, `params` is None.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> for optimizer in (optax.sgd(1e-3), mofo_jax.master_weights(optax.sgd(1e-3))):
      ...   params, gradient = jnp.ones(2, "bfloat16"), jnp.array([1, -1], "bfloat16")
      ...   state = optimizer.init(params)
      ...   for _ in range(100):
      ...     updates, state = optimizer.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...   print(params)
      [1 1]
      [0.898438 1.10156]
      >>> print((params + state.remainder).round(5))
      [0.9 1.1]

    Source: ours. On the need for master weights in float32: Micikevicius et al,
    `Mixed precision training <https://arxiv.org/abs/1710.03740>`_, 2018. The rounding
    error of the sum is computed by Knuth's algorithm TwoSum.
    """
    _checks.check_transformation("`inner` must be", inner)
    dtype = floating_dtype("remainder_dtype", remainder_dtype)
    wrapped = optax.with_extra_args_support(inner)

    def widen(param: Any, x: Any) -> Any:
        return _cast(x, _wide(param, dtype)) if is_floating(param) else x

    def init(params: optax.Params) -> Any:
        return MasterWeightsState(
            remainder=optax.tree.zeros_like(params, dtype=dtype),
            inner_state=wrapped.init(jax.tree.map(widen, params, params)),
        )

    def master(param: Any, remainder: jax.Array | None) -> Any:
        if remainder is None or not is_floating(param):
            return param
        return widen(param, param) + widen(param, remainder)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "`params` must be given to `update`: `master_weights` adds each step "
                "to the parameters and their remainders"
            )
        own = like_updates(params, updates)
        steps, inner_state = wrapped.update(
            jax.tree.map(widen, own, updates),
            state.inner_state,
            jax.tree.map(master, params, state.remainder),
            **extra_args,
        )
        gradients, structure = jax.tree.flatten(updates)
        rest = (own, like_updates(state.remainder, updates), steps)
        settled = list(map(_settle, gradients, *map(structure.flatten_up_to, rest)))
        emitted = structure.unflatten([update for update, _ in settled])
        left = structure.unflatten([left for _, left in settled])
        remainder = with_all_leaves(left, state.remainder)
        return emitted, MasterWeightsState(remainder, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _settle(
    gradient: jax.Array, param: jax.Array, remainder: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the update of a tensor and its new remainder."""
    gradient_dtype = jnp.result_type(gradient)
    if not is_floating(param):
        return jnp.asarray(step, gradient_dtype), remainder
    dtype = jnp.result_type(param)
    wide = jnp.promote_types(_wide(param, remainder.dtype), gradient_dtype)
    theta, r, u = (jnp.asarray(x, wide) for x in (param, remainder, step))
    owed = r + u
    whole = theta + owed
    # The exact rounding error of the sum (TwoSum).
    added = whole - theta
    short = (theta - (whole - added)) + (owed - added)
    emitted = round_to(round_to(whole, dtype) - theta, gradient_dtype)
    reached = round_to(theta + emitted, dtype)
    left = round_to((whole - reached) + short, remainder.dtype)
    # A NaN counts as a move, so that divergence remains visible.
    moves = u != 0
    return (
        jnp.where(moves, emitted, 0).astype(gradient_dtype),
        jnp.where(moves, left, r).astype(remainder.dtype),
    )


def _wide(param: Any, remainder_dtype: Any) -> Any:
    """Returns the dtype in which the sum is computed."""
    return jnp.promote_types(
        jnp.promote_types(dtype_of(param), remainder_dtype), jnp.float32
    )


def _cast(x: Any, dtype: Any) -> Any:
    """Casts an array or a `ShapeDtypeStruct` to another dtype."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x.update(dtype=dtype)
    return jnp.asarray(x, dtype)
