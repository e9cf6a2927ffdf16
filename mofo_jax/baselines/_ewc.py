"""Elastic weight consolidation: a quadratic penalty weighted by Fisher information."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._dtypes import widen
from mofo_jax._pull_to_start import displacement_from, remember
from mofo_jax.baselines import _fisher


class ElasticWeightConsolidationState(NamedTuple):
    """The state of `elastic_weight_consolidation`.

    Attributes:
      start: The parameters at the start of training.
      fisher: Their Fisher information, shaped like the parameters.
    """

    start: optax.Params
    fisher: optax.Params


def elastic_weight_consolidation(
    strength: jax.typing.ArrayLike, fisher: optax.Params
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of the elastic weight consolidation penalty.

    Placed first in an `optax.chain`, it makes the other members of the chain minimize

    .. math::

      L(\theta) + \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta_{0,i})^2,

    with :math:`\theta_0` the parameters at the start of training.

    Args:
      strength: The factor :math:`\lambda` on the penalty, >= 0; may be traced.
      fisher: The diagonal Fisher information, as in `keep_fisher`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. It needs `params`; updates have the
      dtype of the gradients.

    Raises:
      TypeError: If a number is of another type.
      ValueError: If `strength` is negative, `fisher` does not fit the parameters, as in
        `keep_fisher`, or, at an update, `params` is None.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> fisher = jnp.array([0., 1., 9.])
      >>> optimizer = optax.chain(
      ...   mofo_jax.baselines.elastic_weight_consolidation(1.0, fisher), optax.sgd(0.1)
      ... )
      >>> params = jnp.zeros(3)
      >>> state = optimizer.init(params)
      >>> for _ in range(200):
      ...   updates, state = optimizer.update(params - 1.0, state, params)
      ...   params = optax.apply_updates(params, updates)
      >>> print(params.round(1))
      [1.  0.5 0.1]

    Source: Kirkpatrick et al, `Overcoming catastrophic forgetting
    <https://arxiv.org/abs/1612.00796>`_, 2017.
    """
    _checks.check_number("strength", strength, "[0, inf)")

    def init(params: optax.Params) -> Any:
        return ElasticWeightConsolidationState(
            remember(params), _fisher.place_fisher(fisher, params)
        )

    def hold(
        gradient: jax.Array, displacement: jax.Array, fisher: jax.Array
    ) -> jax.Array:
        held = gradient + strength * widen(fisher) * displacement
        return held.astype(jnp.result_type(gradient))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        fisher = _fisher.check_fisher(state.fisher, updates)
        name = "elastic_weight_consolidation"
        displacement = displacement_from(name, updates, params, state.start)
        return jax.tree.map(hold, updates, displacement, fisher), state

    return optax.GradientTransformationExtraArgs(init, update)
