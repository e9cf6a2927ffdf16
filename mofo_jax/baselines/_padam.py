"""Adam with another exponent of the second moment, and steps of the same size."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._adam_state import unrounded
from mofo_jax._dtypes import momentum_dtype, widen
from mofo_jax._options.blocks import (
    BLOCK_AXES,
    BlockAxes,
    Blocks,
    resolve_own_blocks,
)
from mofo_jax._options.path_rules import PerTensor


def scale_by_padam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    *,
    nesterov: bool = False,
    exponent: jax.typing.ArrayLike = 0.75,
    block_axes: PerTensor[BlockAxes] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales updates by a chosen power of Adam's second moment.

    Adam divides the momentum by :math:`\hat v^{1/2}`. Here the divisor is
    :math:`\hat v^p`, and each tensor is then scaled so that its root mean square is
    that of Adam's step:

    .. math::

      \begin{align*}
        u &= \frac{\hat m}{\sqrt{\hat v + \bar\epsilon} + \epsilon}, \qquad
        d = \frac{\hat m}{(\hat v + \bar\epsilon)^p + \epsilon} \\
        u' &= d \, \frac{\mathrm{rms}(u)}{\mathrm{rms}(d)}
      \end{align*}

    so that learning rates for Adam remain suitable. An exponent of 0 gives the
    direction of the momentum, 1/2 that of Adam, and 1 approximately that of a natural
    gradient, with :math:`\hat v` in place of the Fisher information.

    The mean is over the whole tensor under any sharding; inside `shard_map` it is over
    the local shard. A tensor whose momentum is zero does not change.

    Args:
      b1: Decay rate of the momentum, in [0, 1).
      b2: Decay rate of the second moment, in [0, 1).
      eps: Added to the power of the second moment, >= 0. With an exponent above 1/2 the
        powers are smaller, so that the same `eps` has a larger effect.
      eps_root: Added to the second moment before the power is computed, >= 0.
      mu_dtype: The dtype of the momentum in the state; None for the parameters'. The
        update uses the momentum before it is rounded.
      nesterov: Whether to use Nesterov's momentum.
      exponent: The power of the second moment, in [0, 1]; may be traced. A static 1/2
        is bitwise identical to `optax.scale_by_adam`.
      block_axes: The axes of each tensor that index separate blocks, each scaled
        separately, such as `(0,)` for the layers of a `[layers, ...]` tensor; given as
        in `momentum_filter`, but without names, since tensors do not share blocks.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `optax.ScaleByAdamState`.
      Updates have the dtype of the gradients; with a static exponent of 1/2, that of
      the updates of `optax.scale_by_adam`.

    Raises:
      TypeError: If a number is of another type.
      ValueError: If an argument is invalid. Values that depend on the tree of updates
        are checked at the first update.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> gradients = jnp.array([4., 1., -2.]), jnp.array([4., 2., -2.])
      >>> for exponent in (0.0, 0.5, 1.0):
      ...   optimizer = mofo_jax.baselines.scale_by_padam(exponent=exponent)
      ...   state = optimizer.init(jnp.zeros(3))
      ...   for gradient in gradients:
      ...     updates, state = optimizer.update(gradient, state)
      ...   print(*(f"{u:5.2f}" for u in updates))
       1.45  0.55 -0.72
       1.00  0.97 -1.00
       0.52  1.26 -1.03

    Source: Chen et al, `Padam <https://arxiv.org/abs/1806.06763>`_, 2018, whose
    exponents are at most 1/2; larger ones and the scaling are ours.
    """
    options: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    _checks.check_adam(**options)
    _checks.check_number("exponent", exponent, "[0, 1]")
    BLOCK_AXES.check(block_axes)

    def adam(dtype: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(**options, mu_dtype=dtype, nesterov=nesterov)

    if _checks.is_exactly(exponent, 0.5):
        return optax.with_extra_args_support(adam(momentum_dtype(mu_dtype)))
    inner = unrounded(adam, mu_dtype, None)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        new_state: Any
        proposed, new_state = inner.update(updates, state, params, **extra_args)
        # Not `**`, which compiles anew for each count outside of `jax.jit`.
        correction = 1 - jax.lax.pow(widen(b2), new_state.count)

        def redirect(step: jax.Array, nu: jax.Array, blocks: Blocks) -> jax.Array:
            nu_hat = widen(nu) / correction
            return _redirect(step, nu_hat, exponent, eps, eps_root, blocks)

        structure = jax.tree.structure(updates)
        blocks = resolve_own_blocks(block_axes, updates, "scale_by_padam")
        turned = structure.unflatten(
            map(
                redirect,
                structure.flatten_up_to(proposed),
                structure.flatten_up_to(new_state.nu),
                blocks,
            )
        )
        return (
            optax.tree.cast_like(turned, updates),
            optax.tree.cast_like(new_state, state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _redirect(
    step: jax.Array,
    nu_hat: jax.Array,
    exponent: Any,
    eps: Any,
    eps_root: Any,
    blocks: Blocks,
) -> jax.Array:
    """Returns Adam's step with another power of the second moment, and the same size.

    Adam's step is multiplied by the ratio of the two denominators, so that its
    numerator, with or without Nesterov's momentum, is not needed.
    """
    if step.size == 0:
        return step
    nu_hat = nu_hat + eps_root
    quotient = (jnp.sqrt(nu_hat) + eps) / (nu_hat**exponent + eps)
    direction = widen(step) * quotient
    divided, wanted = direction.reshape(blocks.shape), step.reshape(blocks.shape)
    size = root_mean_square(divided, blocks.inner_axes)
    wanted_size = root_mean_square(wanted, blocks.inner_axes)
    return (divided * (wanted_size / jnp.where(size == 0, 1, size))).reshape(step.shape)


def root_mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the root mean square over some axes, which are kept with size 1."""
    magnitude = jnp.abs(widen(x))
    # Computed relative to the largest magnitude: with an exponent of 1, magnitudes may
    # reach 1e19, whose square overflows float32, and squares of small ones underflow.
    largest = jnp.max(magnitude, axis=axes, keepdims=True)
    unit = jnp.where(largest == 0, 1, largest)
    mean = jnp.mean(jnp.square(magnitude / unit), axis=axes, keepdims=True)
    return unit * jnp.sqrt(mean)
