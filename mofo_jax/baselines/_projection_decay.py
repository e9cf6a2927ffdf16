"""Selective projection decay: a projection of some tensors towards their start."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._dtypes import widen
from mofo_jax._options.blocks import (
    BLOCK_AXES,
    BlockAxes,
    Blocks,
    resolve_own_blocks,
)
from mofo_jax._options.path_rules import PerTensor
from mofo_jax._pull_to_start import displacement_from, remember


class SelectiveProjectionDecayState(NamedTuple):
    """The state of `selective_projection_decay`.

    Attributes:
      start: The parameters at the start of training.
      inner: The state of the wrapped transformation.
    """

    start: optax.Params
    inner: optax.OptState


def selective_projection_decay(
    inner: optax.GradientTransformation,
    strength: jax.typing.ArrayLike = 1.0,
    *,
    block_axes: PerTensor[BlockAxes] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Projects back the tensors whose negative gradient points towards the start.

    For each tensor, with :math:`\theta_0` its value at the start of training, :math:`g`
    its gradient and :math:`u` the step of `inner`, including the learning rate:

    .. math::

      \begin{align*}
        \tilde\theta &= \theta + u \\
        r &= \frac{\max(0, \|\tilde\theta - \theta_0\| - \|\theta - \theta_0\|)}
                  {\|\tilde\theta - \theta_0\|} \\
        \theta &\leftarrow \tilde\theta - \lambda r (\tilde\theta - \theta_0)
          \text{ if } -g \cdot (\theta - \theta_0) < 0, \text{ else } \tilde\theta
      \end{align*}

    With :math:`\lambda = 1`, the distance of a tensor from the start does not increase
    while its negative gradient points towards the start. The projection applies to the
    whole tensor, including coordinates that a filter in `inner` did not select at this
    step but that have moved before.

    Args:
      inner: A complete optimizer, such as `optax.adam(1e-5)`, whose updates are to be
        added to the parameters.
      strength: The factor :math:`\lambda` on the projection, >= 0; may be traced. 0
        gives `inner` alone, 1 projects to the distance before the step.
      block_axes: The axes of each tensor that index separate blocks, each projected
        separately; given as in `momentum_filter`, but without names, since tensors do
        not share blocks.

    Returns:
      An `optax.GradientTransformationExtraArgs`. It needs `params`; updates have the
      dtype of those of `inner`.

    Raises:
      TypeError: If `inner` is not a gradient transformation, or a number is of another
        type.
      ValueError: If an argument is invalid, or, at an update, `params` is None. Values
        that depend on the tree of updates are checked at the first update.

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
    _checks.check_number("strength", strength, "[0, inf)")
    BLOCK_AXES.check(block_axes)
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return SelectiveProjectionDecayState(remember(params), wrapped.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        name = "selective_projection_decay"
        displacement = displacement_from(name, updates, params, state.start)
        steps, new_inner = wrapped.update(updates, state.inner, params, **extra_args)
        structure = jax.tree.structure(updates)
        projected = structure.unflatten(
            map(
                functools.partial(_project, strength=strength),
                jax.tree.leaves(updates),
                structure.flatten_up_to(steps),
                structure.flatten_up_to(displacement),
                resolve_own_blocks(block_axes, updates, name),
            )
        )
        return projected, SelectiveProjectionDecayState(state.start, new_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _project(
    gradient: jax.Array,
    step: jax.Array,
    displacement: jax.Array,
    blocks: Blocks,
    *,
    strength: jax.typing.ArrayLike,
) -> jax.Array:
    """Returns the step of one tensor, with the projection of its blocks."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.real(jnp.conj(x) * y), axis=blocks.inner_axes, keepdims=True)

    g, u, moved = (
        widen(x).reshape(blocks.shape) for x in (gradient, step, displacement)
    )
    ahead = moved + u
    before, after = jnp.sqrt(product(moved, moved)), jnp.sqrt(product(ahead, ahead))
    # The difference of two nearly equal norms, computed from the difference of their
    # squares to avoid cancellation: steps are small compared with the distance.
    gained = product(u, moved + ahead) / jnp.where(after == 0, 1, before + after)
    ratio = jnp.clip(gained / jnp.where(after == 0, 1, after), 0, 1)
    drawn_back = u - strength * ratio * ahead
    turns_back = product(g, moved) > 0
    projected = jnp.where(turns_back, drawn_back, u).reshape(jnp.shape(step))
    return projected.astype(jnp.result_type(step))
