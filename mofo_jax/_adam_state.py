"""Optax's Adam with a choice of dtypes for its state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mofo_jax._dtypes import momentum_dtype, second_moment_dtype


def unrounded(
    adam: Callable[[Any], optax.GradientTransformation], mu_dtype: Any, nu_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns Adam whose `update` returns moments that are not yet rounded.

    `init` returns a state of the chosen dtypes. Optax casts the momentum to `mu_dtype`
    after the update has used it. Here it is left as it was used, so that the filter can
    rank it; the filter then casts the new state to the dtypes of the old one.

    Args:
      adam: A function from a `mu_dtype` to Adam, or to a chain that contains it.
      mu_dtype: The dtype of the momentum in the state.
      nu_dtype: The dtype of the second moment in the state; None for the parameters'.
    """
    rounded, unrounded = (
        optax.with_extra_args_support(adam(d)) for d in (momentum_dtype(mu_dtype), None)
    )
    if nu_dtype is None:
        return optax.GradientTransformationExtraArgs(rounded.init, unrounded.update)
    dtype = second_moment_dtype(nu_dtype)

    def init(params: optax.Params) -> optax.OptState:
        nu = optax.tree.zeros_like(params, dtype=dtype)
        return _map_adam(lambda state: state._replace(nu=nu), rounded.init(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        wide = jax.tree.map(lambda g: _at_least(g, dtype), updates)

        def widen(adams: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
            # Optax multiplies the moments by Python numbers, which would round these
            # and the products to a narrow dtype.
            mu = jax.tree.map(lambda g, m: _at_least(m, g.dtype), wide, adams.mu)
            # It is real, even for complex gradients.
            nu = jax.tree.map(
                lambda g, v: jnp.asarray(v, jnp.finfo(g.dtype).dtype), wide, adams.nu
            )
            return adams._replace(mu=mu, nu=nu)

        steps, new_state = unrounded.update(
            wide, _map_adam(widen, state), params, **extra_args
        )
        return optax.tree.cast_like(steps, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _at_least(x: Any, dtype: np.dtype) -> jax.Array:
    """Casts an array to the wider of its own and another dtype."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), dtype))


def _map_adam(
    function: Callable[[optax.ScaleByAdamState], optax.ScaleByAdamState],
    state: optax.OptState,
) -> optax.OptState:
    """Applies a function to each `ScaleByAdamState` in the state of a chain."""

    def is_adams(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    return jax.tree.map(
        lambda node: function(node) if is_adams(node) else node, state, is_leaf=is_adams
    )


def without_params(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Makes `params` optional in the update of an optimizer without weight decay.

    Optax's weight decay requires them even if it is zero.
    """
    wrapped = optax.with_extra_args_support(optimizer)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        params = updates if params is None else params
        return wrapped.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(wrapped.init, update)
