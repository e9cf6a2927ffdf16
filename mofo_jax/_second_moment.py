"""Adam whose state keeps the second moment in a dtype of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mofo_jax._dtypes import floating_dtype


def keep_nu(
    adam: optax.GradientTransformationExtraArgs, nu_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns Adam, or a chain with it, that keeps `nu` in `nu_dtype`.

    Moments are computed at the wider of that and the gradients' dtype, and returned
    before they are rounded: whoever keeps the state rounds them. None changes nothing.
    """
    if nu_dtype is None:
        return adam
    dtype = floating_dtype("nu_dtype", nu_dtype)

    def init(params: optax.Params) -> optax.OptState:
        nu = optax.tree.zeros_like(params, dtype=dtype)
        return _map_adam(lambda state: state._replace(nu=nu), adam.init(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        wide = jax.tree.map(
            lambda g: jnp.asarray(g, jnp.promote_types(jnp.result_type(g), dtype)),
            updates,
        )

        def widen(adams: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
            # The moment of complex gradients is real. Optax multiplies it by a number
            # of Python, and would round the product to a narrow dtype.
            nu = jax.tree.map(
                lambda g, v: jnp.asarray(v, jnp.finfo(g.dtype).dtype), wide, adams.nu
            )
            return adams._replace(nu=nu)

        steps, new_state = adam.update(
            wide, _map_adam(widen, state), params, **extra_args
        )
        return optax.tree.cast_like(steps, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _map_adam(
    function: Callable[[optax.ScaleByAdamState], optax.ScaleByAdamState],
    state: optax.OptState,
) -> optax.OptState:
    """Applies a function to Adam's own state in that of a chain."""

    def is_adams(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    return jax.tree.map(
        lambda node: function(node) if is_adams(node) else node, state, is_leaf=is_adams
    )
