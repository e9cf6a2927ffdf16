"""A pull towards the parameters at the start of training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._dtypes import widen
from mofo_jax._trees import like_updates

NORMS = ("l2", "l1")


class PullToStartState(NamedTuple):
    """The state of `pull_to_start`.

    Attributes:
      start: The parameters at the start of training.
    """

    start: optax.Params


def pull_to_start(
    strength: jax.typing.ArrayLike, norm: str = "l2", mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds a decoupled pull towards the parameters at the start of training.

    Placed in an `optax.chain` after the transformation that computes a step and before
    `optax.scale_by_learning_rate`, like decoupled weight decay, it gives

    .. math::

      \theta \leftarrow \theta - \eta (u + \lambda (\theta - \theta_0))
      \quad \text{or} \quad
      \theta \leftarrow \theta - \eta (u + \lambda \, \mathrm{sign}(\theta - \theta_0)),

    where :math:`\theta_0` are the parameters at `init`. Since the learning rate is
    applied later in the chain, the `"l1"` pull cannot be limited to the remaining
    displacement: as in the authors' code, it may overshoot the start by at most
    :math:`\eta \lambda`. Exactly at the start there is no pull.

    Args:
      strength: The factor :math:`\lambda` on the pull, >= 0; may be traced. In runs
        of 24 steps in our study, a product of about 1 with the sum of the learning
        rates worked best; a strength of 3000 learned less at every rate.
      norm: `"l2"` pulls in proportion to the displacement, `"l1"` with equal strength
        everywhere.
      mask: The parameters to pull, as in `optax.add_decayed_weights`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. It needs `params`; updates keep their
      dtype.

    Raises:
      TypeError: If `strength` is not a number.
      ValueError: If `strength` or `norm` is invalid, or, at an update, `params` is
        None.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = optax.chain(
      ...   mofo_jax.pull_to_start(0.5), optax.scale_by_learning_rate(1.0)
      ... )
      >>> params = jnp.array([1., 2.])
      >>> state = optimizer.init(params)
      >>> params = params + jnp.array([4., -4.])
      >>> for _ in range(3):
      ...   updates, state = optimizer.update(jnp.zeros(2), state, params)
      ...   params = optax.apply_updates(params, updates)
      ...   print(params)
      [3. 0.]
      [2. 1.]
      [1.5 1.5]

    Source: the regularized baselines of Chen et al,
    `MoFO <https://arxiv.org/abs/2407.20999>`_, 2025. L2 regularization towards the
    start was introduced by Xuhong et al,
    `L2-SP <https://arxiv.org/abs/1802.01483>`_, 2018.
    """
    _checks.check_number("strength", strength, "[0, inf)")
    _checks.check_choice("norm", norm, NORMS)

    def init(params: optax.Params) -> Any:
        return PullToStartState(remember(params))

    def pull(update: jax.Array, displacement: jax.Array) -> jax.Array:
        direction = jnp.sign(displacement) if norm == "l1" else displacement
        return (update + strength * direction).astype(jnp.result_type(update))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        displacement = displacement_from("pull_to_start", updates, params, state.start)
        return jax.tree.map(pull, updates, displacement), state

    transformation = optax.GradientTransformationExtraArgs(init, update)
    return transformation if mask is None else optax.masked(transformation, mask)


def remember(params: optax.Params) -> optax.Params:
    """Copies the parameters into new buffers.

    Trainers donate both the parameters and the state, and a buffer can be donated only
    once.
    """
    return jax.tree.map(_copy, params)


def _copy(leaf: Any) -> Any:
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return leaf if abstract else jnp.array(leaf, copy=True)


def displacement_from(
    name: str, updates: optax.Updates, params: optax.Params | None, start: optax.Params
) -> optax.Updates:
    """Returns the displacement from the start of each parameter that has an update.

    It is in float32 or wider.

    Raises:
      ValueError: If `params` is None.
    """
    if params is None:
        raise ValueError(
            f"`params` must be given to `update`: `{name}` compares them with those at "
            "the start of training"
        )
    params, start = (like_updates(tree, updates) for tree in (params, start))
    return jax.tree.map(lambda p, s: widen(p) - widen(s), params, start)
