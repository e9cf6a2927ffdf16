"""Parameters in bfloat16 or float16 that take steps too small for them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._dtypes import dtype_of, floating_dtype, is_floating, round_to


class MasterWeightsState(NamedTuple):
    """What the parameters cannot hold of their master weights.

    Attributes:
      remainder: The master weights less the parameters, shaped as these.
      inner_state: The state of the wrapped transformation.
    """

    remainder: optax.Params
    inner_state: optax.OptState


def master_weights(
    inner: optax.GradientTransformation,
    *,
    remainder_dtype: jax.typing.DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps what parameters of a narrow dtype cannot hold of the steps they are given.

    A bfloat16 parameter of 1 ignores steps of 0.0019, however many there are. Here
    the parameter :math:`\theta` is the rounded part of a master weight
    :math:`\theta + r`, and a step :math:`u` of `inner` is added to the whole:

    .. math::

      \theta' = \mathrm{round}(\theta + (r + u)), \qquad
      r' = (\theta + (r + u)) - \theta'

    so that :math:`\theta' + r' = \theta + r + u` but for the rounding of two numbers,
    :math:`r + u` and :math:`r'`, both of about the size of the step or of half a unit
    in the last place of :math:`\theta`: more exact than master weights in float32,
    and with no second copy of what the parameter holds. The new remainder is counted
    from the parameter that `optax.apply_updates` arrives at, even where the update,
    rounded to the gradients' dtype, leads it elsewhere than planned.

    Where `inner`'s step is exactly zero nothing changes: what a filter does not select
    stays where it is, with its remainder, even where that is half a unit.

    `inner` gets gradients, parameters (the master weights) and at `init` parameters in
    float32, or in float64 where the parameters are. So its moments are float32, too,
    which they must be: in bfloat16 a second moment with a decay rate of 0.999 never
    decays, since the product rounds back to what it was.

    Place it around all that computes the step: ``master_weights(mofo(...))``. What
    changes the updates afterwards, as a filter or a later member of a chain, is not
    accounted for; what drops them together with the new state, as `optax.MultiSteps`
    and `optax.apply_if_finite` do, is.

    Args:
      inner: Any transformation that ends with the step, as `mofo` and `optax.adamw`.
      remainder_dtype: The floating-point dtype of the remainder. `"float32"` takes 4
        bytes a parameter. `"bfloat16"` takes 2, and makes of a bfloat16 parameter a
        master weight of 17 significant binary digits: a step below 2**-17 of it may be
        lost.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `MasterWeightsState`. It needs
      `params`; updates have the dtype of the gradients. Parameters in float32 or
      float64 are given a compensated sum. Complex and integer ones are updated as by
      `inner` alone.

    Raises:
      TypeError: If `inner` is no gradient transformation.
      ValueError: If `remainder_dtype` is no floating-point dtype, or, at an update,
        `params` is None.

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

    Source: ours. That float16 parameters need master weights in float32: Micikevicius
    et al, `Mixed precision training <https://arxiv.org/abs/1710.03740>`_, 2018; the
    error of the sum is Knuth's.
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

    def master(param: Any, remainder: jax.Array) -> Any:
        whole = is_floating(param)
        return widen(param, param) + widen(param, remainder) if whole else param

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "`params` must be given to `update`: `master_weights` adds each step "
                "to them and to what they cannot hold"
            )
        steps, inner_state = wrapped.update(
            jax.tree.map(widen, params, updates),
            state.inner_state,
            jax.tree.map(master, params, state.remainder),
            **extra_args,
        )
        settled = jax.tree.map(_settle, updates, params, state.remainder, steps)
        emitted, remainder = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0, 0)), settled
        )
        return emitted, MasterWeightsState(remainder, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _settle(
    gradient: jax.Array, param: jax.Array, remainder: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the update of a tensor and what the parameters will not hold of it."""
    gradient_dtype = jnp.result_type(gradient)
    if not is_floating(param):
        return jnp.asarray(step, gradient_dtype), remainder
    dtype = jnp.result_type(param)
    wide = jnp.promote_types(_wide(param, remainder.dtype), gradient_dtype)
    theta, r, u = (jnp.asarray(x, wide) for x in (param, remainder, step))
    owed = r + u
    whole = theta + owed
    # What the sum is short of, exactly.
    added = whole - theta
    short = (theta - (whole - added)) + (owed - added)
    emitted = round_to(round_to(whole, dtype) - theta, gradient_dtype)
    reached = round_to(theta + emitted, dtype)
    left = round_to((whole - reached) + short, remainder.dtype)
    # A NaN is not zero: it has to be seen.
    moves = u != 0
    return (
        jnp.where(moves, emitted, 0).astype(gradient_dtype),
        jnp.where(moves, left, r).astype(remainder.dtype),
    )


def _wide(param: Any, remainder_dtype: Any) -> Any:
    """Returns the dtype to calculate in."""
    return jnp.promote_types(
        jnp.promote_types(dtype_of(param), remainder_dtype), jnp.float32
    )


def _cast(x: Any, dtype: Any) -> Any:
    """Returns an array, or what stands for one, in another dtype."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x.update(dtype=dtype)
    return jnp.asarray(x, dtype)
