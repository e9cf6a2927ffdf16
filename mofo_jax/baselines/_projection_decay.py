"""Selective projection decay: what would rather turn round goes no farther."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks, _pull_to_start
from mofo_jax._dtypes import widen
from mofo_jax._options import blocks


class SelectiveProjectionDecayState(NamedTuple):
    """Where training began, and the state of the transformation inside."""

    start: optax.Params
    inner: optax.OptState


def selective_projection_decay(
    inner: optax.GradientTransformation,
    strength: jax.typing.ArrayLike = 1.0,
    *,
    block_axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Draws back the tensors whose gradient points back to where training began.

    For each tensor, with :math:`g` its gradient and :math:`u` the step of `inner`, in
    which the learning rate is:

    .. math::

      \begin{align*}
        \tilde\theta &= \theta + u \\
        r &= \frac{\max(0, \|\tilde\theta - \theta_0\| - \|\theta - \theta_0\|)}
                  {\|\tilde\theta - \theta_0\|} \\
        \theta &\leftarrow \tilde\theta - \lambda r (\tilde\theta - \theta_0)
          \text{ if } -g \cdot (\theta - \theta_0) < 0, \text{ else } \tilde\theta
      \end{align*}

    so that with :math:`\lambda = 1` a tensor that would rather turn round gets no
    farther from the start. The whole tensor is drawn back, also the coordinates that a
    filter in `inner` left where they were, if they have ever moved.

    Args:
      inner: A complete optimizer, such as `optax.adam(1e-5)`, whose updates are to be
        added to the parameters.
      strength: The factor on the projection, >= 0; may be traced. 0 is `inner` alone, 1
        projects onto the distance before the step.
      block_axes: The axes of each tensor that index separate blocks, each judged on its
        own; given as in `momentum_filter`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. It needs `params`; updates have the
      dtype of those of `inner`.

    Raises:
      TypeError: If `inner` is not a gradient transformation.
      ValueError: If an argument has a wrong value, here or, where only the tree tells,
        at the first update, or `params` is None there.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = mofo_jax.baselines.selective_projection_decay(optax.sgd(1.0, 0.9))
      >>> params = jnp.zeros(1)
      >>> state = optimizer.init(params)
      >>> for gradient in (-4., -1., 0.5):
      ...   updates, state = optimizer.update(jnp.array([gradient]), state, params)
      ...   params = optax.apply_updates(params, updates)
      ...   print(f"{params[0]:.2f}")
      4.00
      8.60
      8.60

    Source: Tian et al, `Rethinking weight decay for robust fine-tuning
    <https://arxiv.org/abs/2411.01713>`_, 2024.
    """
    _checks.check_transformation("`inner` must be", inner)
    _checks.check_number("strength", strength, 0)
    blocks.check_axes(block_axes)
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return SelectiveProjectionDecayState(
            _pull_to_start.remember(params), wrapped.init(params)
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        way = _pull_to_start.way_from_start(
            "selective_projection_decay", params, state.start
        )
        steps, new_inner = wrapped.update(updates, state.inner, params, **extra_args)
        axes = blocks.resolve_axes(block_axes, updates)
        project = functools.partial(_project, strength=strength)
        steps = jax.tree.map(project, updates, steps, way, axes)
        return steps, SelectiveProjectionDecayState(state.start, new_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _project(
    gradient: jax.Array,
    step: jax.Array,
    way: jax.Array,
    block_axes: tuple[int, ...],
    *,
    strength: jax.typing.ArrayLike,
) -> jax.Array:
    """Returns one tensor's step, drawn back where its gradient points to the start."""
    axes = blocks.inner_axes(jnp.ndim(way), block_axes)

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.real(jnp.conj(x) * y), axis=axes, keepdims=True)

    u = widen(step)
    ahead = way + u
    before, after = jnp.sqrt(product(way, way)), jnp.sqrt(product(ahead, ahead))
    # The difference of two nearly equal norms, by way of that of their squares, which
    # does not cancel: a step is small against the distance.
    gained = product(u, way + ahead) / jnp.where(after == 0, 1, before + after)
    ratio = jnp.clip(gained / jnp.where(after == 0, 1, after), 0, 1)
    drawn_back = u - strength * ratio * ahead
    turns_back = product(widen(gradient), way) > 0
    return jnp.where(turns_back, drawn_back, u).astype(jnp.result_type(step))
