"""Control of the update fraction that keeps a model within a budget of change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mofo_jax import _checks
from mofo_jax._covariances import jaxprs
from mofo_jax._pull_to_start import displacement_from, remember

MEASURES = ("distance", "divergence")


class ControlFractionState(NamedTuple):
    """The state of `control_fraction`.

    Attributes:
      count: The number of steps taken, shape=(), dtype=jnp.int32.
      fraction: The current update fraction, shape=(), dtype=jnp.float32.
      start: The parameters at the start of training; None if the divergence is
        measured.
      inner: The state of the wrapped transformation.
    """

    # `count` is Optax's name; it shadows a method of tuples.
    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    fraction: jax.Array
    start: Any
    inner: optax.OptState


def control_fraction(
    factory: Callable[[jax.Array], optax.GradientTransformation],
    *,
    budget: optax.ScalarOrSchedule,
    measure: str = "distance",
    initial: jax.typing.ArrayLike = 0.15,
    gain: jax.typing.ArrayLike = 0.1,
    least: jax.typing.ArrayLike = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    r"""Adapts the update fraction so that the model stays within a budget.

    Before each step, the measured change :math:`D` of the model since the start of
    training is compared with the budget :math:`B`, and the fraction is scaled:

    .. math::

      \log\alpha \leftarrow
        \log\alpha + k \, \mathrm{clip}\left(\log\frac{B}{D}, -1, 1\right),
      \qquad \alpha \in [\alpha_{\min}, 1]

    where :math:`k` is the `gain` and :math:`\alpha_{\min}` the argument `least`. The
    fraction changes by a factor of at most :math:`e^k` per step. The step is then
    computed by the transformation that `factory` returns for the new fraction.

    If the model settles at a distance that increases with the fraction, the fraction
    converges to the value at which that distance equals the budget. If nothing pulls
    the model back, a distance once reached does not shrink: under a constant budget the
    fraction grows until the budget is exceeded and then falls to `least`. In that case
    use a budget that grows during training, such as
    `optax.linear_schedule(1.0, 20.0, steps)`.

    `optax.inject_hyperparams` treats callables as schedules. To wrap this function with
    it, pass ``static_args=("factory",)``; a `budget` that is a schedule is then
    evaluated by the wrapper. Other hyperparameters can be injected within `factory`,
    with ``static_args=("update_fraction",)``.

    Args:
      factory: Takes the fraction, an array of shape () that may be traced, and returns
        the transformation to run, such as
        ``lambda fraction: mofo(1e-4, update_fraction=fraction)``. Its initial state
        must not depend on the fraction, since later fractions would not replace it.
        `factory` is called at every trace and should be cheap.
      budget: The largest distance or divergence allowed, > 0; a number or a schedule of
        the step count (from 0).
      measure: `"distance"` is the Euclidean distance of all parameters from those at
        `init`, of which the state then keeps a copy. `"divergence"` is the value that
        the caller passes to `update` as the extra argument `divergence`, such as a
        Kullback-Leibler divergence from the model before training. Within
        `jax.shard_map`, each device would measure the distance of its own shards; pass
        a divergence that is equal on all devices instead. A negative one counts as
        zero.
      initial: The initial fraction, in [`least`, 1].
      gain: The rate of adaptation, > 0. The more slowly the measure responds to the
        fraction, the smaller the gain must be to avoid oscillation.
      least: The lower bound of the fraction, in (0, 1].

    Returns:
      An `optax.GradientTransformationExtraArgs`. The fraction is unchanged at steps
      whose `divergence` is missing, None or NaN, so that it need not be measured at
      every step. A NaN distance leaves the fraction unchanged too.

    Raises:
      TypeError: If `factory` does not return a gradient transformation, or a number is
        of another type.
      ValueError: If an argument is invalid, at `init`, if the state depends on the
        fraction, or, at an update that measures the distance, `params` is None.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> optimizer = mofo_jax.control_fraction(
      ...   lambda fraction: mofo_jax.mofo(1.0, update_fraction=fraction),
      ...   budget=0.1, measure="divergence", gain=0.5,
      ... )
      >>> params = jnp.zeros(20)
      >>> state = optimizer.init(params)
      >>> for divergence in (0.1, 0.2, None, 5.0):
      ...   _, state = optimizer.update(params, state, params, divergence=divergence)
      ...   print(f"{state.fraction:.3f}")
      0.150
      0.106
      0.106
      0.064

    Source: ours.
    """
    _check(budget, measure, initial, gain, least)

    def run(fraction: jax.Array) -> optax.GradientTransformationExtraArgs:
        made = factory(fraction)
        _checks.check_transformation("`factory` must return", made)
        return optax.with_extra_args_support(made)

    def init(params: optax.Params) -> Any:
        # A new buffer, since the state is donated, perhaps with `initial` in it.
        fraction = jnp.array(initial, jnp.float32)
        if _depends(lambda number: run(number).init(params), fraction):
            raise ValueError(
                "`factory` must return a transformation whose initial state does not "
                "depend on the fraction: with optax.inject_hyperparams, pass "
                'static_args=("update_fraction",)'
            )
        return ControlFractionState(
            count=jnp.zeros([], jnp.int32),
            fraction=fraction,
            start=remember(params) if measure == "distance" else None,
            inner=run(fraction).init(params),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        divergence: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        measured = divergence
        if divergence is not None:
            _checks.check_scalar("divergence", divergence)
        if measure == "distance":
            moved = displacement_from("control_fraction", updates, params, state.start)
            measured = optax.tree.norm(moved)
        fraction = state.fraction
        if measured is not None:
            allowed = budget(state.count) if callable(budget) else budget
            _checks.check_scalar("budget", allowed)
            fraction = _adapt(fraction, allowed, measured, gain, least)
        steps, inner = run(fraction).update(updates, state.inner, params, **extra_args)
        count = optax.safe_increment(state.count)
        return steps, ControlFractionState(count, fraction, state.start, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _adapt(
    fraction: jax.Array, budget: Any, measured: Any, gain: Any, least: Any
) -> jax.Array:
    """Returns the fraction for the next step, unchanged if the measure is NaN."""
    # An estimate of a small divergence may be below zero.
    budget, measured = (
        jnp.maximum(jnp.asarray(x, jnp.float32), 0) for x in (budget, measured)
    )
    error = jnp.clip(jnp.log(budget) - jnp.log(measured), -1, 1)
    adapted = jnp.clip(fraction * jnp.exp(gain * error), least, 1)
    return jnp.where(jnp.isnan(error), fraction, adapted).astype(jnp.float32)


def _check(budget: Any, measure: Any, initial: Any, gain: Any, least: Any) -> None:
    """Raises TypeError or ValueError if an argument is invalid."""
    _checks.check_choice("measure", measure, MEASURES)
    _checks.check_number("initial", initial, "(0, 1]")
    _checks.check_number("least", least, "(0, 1]")
    _checks.check_number("gain", gain, "(0, inf)")
    _checks.check_schedule("budget", budget, "(0, inf)")
    initial, least = map(_checks.known, (initial, least))
    known = map(_checks.is_static_number, (initial, least))
    if all(known) and initial < least:
        raise ValueError(f"`initial` must be at least `least`, got {initial} < {least}")


def _depends(output: Callable[[jax.Array], Any], number: jax.Array) -> bool:
    """Returns whether an array that a function returns depends on its argument."""

    def arrays(number: jax.Array) -> list[Any]:
        leaves = jax.tree.leaves(output(number))
        return [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

    jaxpr = jax.make_jaxpr(arrays)(number).jaxpr
    # Without results, all variables of a jaxpr count as used.
    return bool(jaxpr.outvars) and jaxpr.invars[0] in jaxprs.used(jaxpr)
