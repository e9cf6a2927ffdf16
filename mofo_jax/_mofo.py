"""MoFO: Adam that moves only the coordinates with the largest momenta."""

from typing import Any, Literal

import jax
import optax

from mofo_jax import _checks, scores
from mofo_jax._adam_state import unrounded, without_params
from mofo_jax._filter import Ties, momentum_filter
from mofo_jax._named_scores import ScoreLike
from mofo_jax._options.blocks import BlockAxes
from mofo_jax._options.path_rules import PerTensor
from mofo_jax._options.per_tensor import AxisName, Fraction


def mofo(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    nu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
    update_fraction: PerTensor[Fraction] = 0.15,
    block_axes: PerTensor[BlockAxes] | None = None,
    dense: PerTensor[bool] | None = None,
    score: ScoreLike = "momentum",
    ties: Ties = "all",
    unselected_scale: jax.typing.ArrayLike = 0.0,
    decay: Literal["selected", "all"] = "selected",
    axis_name: PerTensor[AxisName] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The Momentum-Filtered Optimizer.

    Adam's moments are updated for all coordinates, but each step moves only the
    fraction :math:`\alpha` of every block that has the largest momenta. A block is by
    default a whole tensor:

    .. math::

      \begin{align*}
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \frac{m / (1 - \beta_1^t)}
                  {\sqrt{v / (1 - \beta_2^t) + \bar\epsilon} + \epsilon} \\
        \theta &\leftarrow \theta - \eta_t u
          \text{ where } |m| \text{ is among the } \max(1, \lfloor \alpha n \rfloor)
          \text{ largest of its block of } n
      \end{align*}

    The other coordinates of :math:`\theta` do not change at all. The state is that of
    `optax.adamw` with the same arguments, so that either optimizer can resume from a
    checkpoint of the other, and a static ``update_fraction=1`` is bitwise identical to
    `optax.adamw`. Pass `weight_decay` to both: its default is 0 here and 1e-4 in
    `optax.adamw`. This holds if gradients, and decay rates that are arrays, are no
    wider than the parameters: the state keeps its dtypes, while that of `optax.adamw`
    takes the wider dtype.

    With a `mu_dtype` narrower than the gradients, momenta are ranked as the update uses
    them, before they are rounded for the state.

    Args:
      learning_rate: A number or a schedule.
      b1: Decay rate of the momentum, in [0, 1).
      b2: Decay rate of the second moment, in [0, 1).
      eps: Added to the denominator outside the square root, >= 0.
      eps_root: Added inside the square root, >= 0.
      mu_dtype: The dtype of the momentum in the state; None for the parameters'.
      weight_decay: Decoupled weight decay, a number or a schedule. Unless it is zero,
        updates need `params`.
      mask: The parameters to decay, as in `optax.adamw`.
      nu_dtype: The dtype of the second moment in the state; None for the parameters'.
        Use `"float32"` for parameters in bfloat16 or float16; `"float16"` is refused,
        since it has no numbers below 6e-8. A second moment in bfloat16 saves memory but
        stalls: with a `b2` of 0.999, its decay is less than half a unit in its last
        place, so that it never decreases, and it increases only if a squared gradient
        is several times as large. The update is computed in the wider of `nu_dtype` and
        the dtype of the gradients, and the moments are rounded afterwards.
      nesterov: Whether to use Nesterov's momentum in the update. Coordinates are ranked
        by the ordinary momentum in either case.
      update_fraction: The paper's alpha, in (0, 1]; see `momentum_filter`.
      block_axes: The axes that index separate blocks; see `momentum_filter`.
      dense: The tensors that take plain Adam updates; see `momentum_filter`.
      score: How coordinates are ranked; see `momentum_filter`.
      ties: `"all"` or `"exact"`; see `momentum_filter`.
      unselected_scale: The factor on the steps of coordinates that are not selected;
        see `momentum_filter`.
      decay: `"selected"` applies weight decay to the coordinates that move, so that the
        others stay unchanged; `"all"` applies it to every coordinate, as the authors'
        code does.
      axis_name: The mesh axes of `shard_map`; see `momentum_filter`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its state has the structure, shapes
      and dtypes of the state of `optax.adamw`, except for the `nu_dtype`.

    Raises:
      TypeError: If a number is of another type.
      ValueError: If an argument is invalid. Values that depend on the tree of updates
        are checked at the first update.

    Examples:
      >>> import jax, jax.numpy as jnp, mofo_jax, optax
      >>> def loss(params):
      ...   return jnp.sum((params - jnp.array([1., 2., 3., 4.])) ** 2)
      >>> optimizer = mofo_jax.mofo(learning_rate=0.5, update_fraction=0.25)
      >>> params = jnp.zeros(4)
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...   grads = jax.grad(loss)(params)
      ...   updates, state = optimizer.update(grads, state, params)
      ...   params = optax.apply_updates(params, updates)
      ...   print(params.round(2))
      [0.  0.  0.  0.5]
      [0. 0. 0. 1.]
      [0.   0.   0.   1.49]

    Source: Chen et al, `MoFO <https://arxiv.org/abs/2407.20999>`_, 2025, algorithm 1,
    and the authors' code.
    """
    _checks.check_choice("decay", decay, ("selected", "all"))
    adam: dict[str, Any] = {
        "b1": b1,
        "b2": b2,
        "eps": eps,
        "eps_root": eps_root,
        "nesterov": nesterov,
    }
    selection: dict[str, Any] = {
        "update_fraction": update_fraction,
        "block_axes": block_axes,
        "dense": dense,
        "score": score,
        "ties": ties,
        "unselected_scale": unselected_scale,
        "axis_name": axis_name,
    }
    decays = not _checks.is_exactly(weight_decay, 0)
    if decay == "all":
        decayed = optax.add_decayed_weights(weight_decay, mask)
        return optax.chain(
            scale_by_mofo(mu_dtype=mu_dtype, nu_dtype=nu_dtype, **adam, **selection),
            decayed if decays else without_params(decayed),
            optax.scale_by_learning_rate(learning_rate),
        )
    _checks.check_adam(b1, b2, eps, eps_root)

    def adamw(mu_dtype: Any) -> optax.GradientTransformation:
        optimizer = optax.adamw(
            learning_rate,
            weight_decay=weight_decay,
            mask=mask,
            mu_dtype=mu_dtype,
            **adam,
        )
        return optimizer if decays else without_params(optimizer)

    selection["score"] = _own_ratio(score, b2, eps, eps_root)
    return momentum_filter(unrounded(adamw, mu_dtype, nu_dtype), **selection)


def scale_by_mofo(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    *,
    nu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
    update_fraction: PerTensor[Fraction] = 0.15,
    block_axes: PerTensor[BlockAxes] | None = None,
    dense: PerTensor[bool] | None = None,
    score: ScoreLike = "momentum",
    ties: Ties = "all",
    unselected_scale: jax.typing.ArrayLike = 0.0,
    axis_name: PerTensor[AxisName] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales updates as Adam does and keeps those with the largest momenta.

    This is `mofo` without learning rate and weight decay, for use in `optax.chain`.

    Args:
      b1: Decay rate of the momentum, in [0, 1).
      b2: Decay rate of the second moment, in [0, 1).
      eps: Added to the denominator outside the square root, >= 0.
      eps_root: Added inside the square root, >= 0.
      mu_dtype: The dtype of the momentum in the state; None for the parameters'.
      nu_dtype: The dtype of the second moment in the state; see `mofo`.
      nesterov: Whether to use Nesterov's momentum in the update.
      update_fraction: The paper's alpha, in (0, 1]; see `momentum_filter`.
      block_axes: The axes that index separate blocks; see `momentum_filter`.
      dense: The tensors that take plain Adam updates; see `momentum_filter`.
      score: How coordinates are ranked; see `momentum_filter`.
      ties: `"all"` or `"exact"`; see `momentum_filter`.
      unselected_scale: The factor on the steps of coordinates that are not selected;
        see `momentum_filter`.
      axis_name: The mesh axes of `shard_map`; see `momentum_filter`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose state is an
      `optax.ScaleByAdamState`.

    Raises:
      TypeError: If a number is of another type.
      ValueError: If an argument is invalid. Values that depend on the tree of updates
        are checked at the first update.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = optax.chain(
      ...   optax.clip_by_global_norm(1.0),
      ...   mofo_jax.scale_by_mofo(update_fraction=0.5),
      ...   optax.scale_by_learning_rate(0.1),
      ... )
      >>> state = optimizer.init(jnp.zeros(4))
      >>> updates, state = optimizer.update(jnp.array([3., 1., -4., 2.]), state)
      >>> print(updates.round(3))
      [-0.1 -0.   0.1 -0. ]

    Source: Chen et al, `MoFO <https://arxiv.org/abs/2407.20999>`_, 2025, algorithm 1.
    """
    _checks.check_adam(b1, b2, eps, eps_root)

    def adam(mu_dtype: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)

    return momentum_filter(
        unrounded(adam, mu_dtype, nu_dtype),
        update_fraction=update_fraction,
        block_axes=block_axes,
        dense=dense,
        score=_own_ratio(score, b2, eps, eps_root),
        ties=ties,
        unselected_scale=unselected_scale,
        axis_name=axis_name,
    )


def _own_ratio(score: ScoreLike, b2: Any, eps: Any, eps_root: Any) -> ScoreLike:
    """Replaces "adam_ratio" by the score with the optimizer's own hyperparameters."""
    return scores.adam_ratio(b2, eps, eps_root) if score == "adam_ratio" else score
