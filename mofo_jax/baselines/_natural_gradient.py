"""The natural gradient with a given diagonal Fisher information."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._dtypes import momentum_dtype, widen
from mofo_jax._trees import with_all_leaves
from mofo_jax.baselines import _fisher


class ScaleByNaturalGradientState(NamedTuple):
    """The state of `scale_by_natural_gradient`.

    Attributes:
      count: The number of steps taken, shape=(), dtype=jnp.int32.
      mu: The momentum, shaped like the parameters.
      fisher: The Fisher information that divides it, of the same shapes.
    """

    # `count` is Optax's name; it shadows a method of tuples.
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    fisher: optax.Params


def scale_by_natural_gradient(
    fisher: optax.Params,
    *,
    damping: jax.typing.ArrayLike,
    b1: jax.typing.ArrayLike = 0.9,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the momentum by a given Fisher information.

    .. math::

      m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
      u = \frac{m / (1 - \beta_1^t)}{F + \lambda}

    This is the step that lowers the loss most for a given Kullback-Leibler divergence
    from the model on which `fisher` was estimated. The step is not normalized: its size
    is inversely proportional to the damped Fisher information, so that learning rates
    differ from those of Adam.

    Args:
      fisher: The diagonal Fisher information, as in `keep_fisher`.
      damping: Added to the Fisher information, >= 0. It bounds the step of coordinates
        whose estimate is near zero; use 0 only if there are none.
      b1: Decay rate of the momentum, in [0, 1).
      mu_dtype: The dtype of the momentum in the state; None for the parameters'.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Updates have the dtype of the
      gradients.

    Raises:
      TypeError: If a number is of another type.
      ValueError: If a number is out of range, or `fisher` does not fit the parameters,
        as in `keep_fisher`.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> optimizer = mofo_jax.baselines.scale_by_natural_gradient(
      ...   jnp.array([1., 3.]), damping=1.0
      ... )
      >>> state = optimizer.init(jnp.zeros(2))
      >>> for gradient in (jnp.array([4., 4.]), jnp.array([4., -4.])):
      ...   updates, state = optimizer.update(gradient, state)
      ...   print(*(f"{u:.2f}" for u in updates))
      2.00 1.00
      2.00 -0.05

    Source: Amari, Natural gradient works efficiently in learning, 1998; the diagonal
    with damping as in Martens, `New insights <https://arxiv.org/abs/1412.1193>`_, 2014.
    """
    _checks.check_number("damping", damping, "[0, inf)")
    _checks.check_number("b1", b1, "[0, 1)")
    mu_dtype = momentum_dtype(mu_dtype)

    def init(params: optax.Params) -> Any:
        count = jnp.zeros([], jnp.int32)
        mu = optax.tree.zeros_like(params, dtype=mu_dtype)
        return ScaleByNaturalGradientState(
            count, mu, _fisher.place_fisher(fisher, params)
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        fisher = _fisher.check_fisher(state.fisher, updates)
        count = optax.safe_increment(state.count)
        # Products with the decay rate are not rounded to a narrow dtype.
        gradients, mu = jax.tree.map(widen, (updates, state.mu))
        mu = optax.tree.update_moment(gradients, mu, b1, 1)
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        steps = jax.tree.map(lambda m, f: m / (widen(f) + damping), mu_hat, fisher)
        mu = with_all_leaves(mu, state.mu)
        new = ScaleByNaturalGradientState(count, mu, state.fisher)
        return optax.tree.cast_like(steps, updates), optax.tree.cast_like(new, state)

    return optax.GradientTransformationExtraArgs(init, update)
