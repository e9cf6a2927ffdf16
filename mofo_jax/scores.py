r"""Scores, by which `momentum_filter` ranks the coordinates of a tensor.

A score is a function from a `Tensor` to an array of its shape. Coordinates whose scores
have the largest magnitudes are selected; a coordinate that scores zero never moves. The
option `score` takes the name of a score, such as `"momentum"`, any such function, or a
`Score`, which wraps a function in an object that `optax.inject_hyperparams` does not
treat as a schedule. The functions in this module return scores that take arguments.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mofo_jax import _checks, _dtypes
from mofo_jax._options.blocks import AXES, BlockAxes, inner_axes, normalize_axes
from mofo_jax._options.path_rules import PathRules, place
from mofo_jax._score_inputs import Function as Function
from mofo_jax._score_inputs import Score as Score
from mofo_jax._score_inputs import Tensor as Tensor
from mofo_jax._selection.patterns import differing

__all__ = (
    "Function",
    "Score",
    "Tensor",
    "adam_ratio",
    "gain_for_cost",
    "gain_for_fisher",
    "random",
    "random_tensors",
)


def adam_ratio(
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
) -> Score:
    r"""Ranks by the magnitude of Adam's step.

    .. math:: |m| / (\sqrt{\hat v + \bar\epsilon} + \epsilon)

    Args:
      b2: Adam's decay rate of the second moment, in [0, 1).
      eps: Adam's eps, >= 0.
      eps_root: Adam's eps_root, >= 0.

    Returns:
      A `Score` for transformations that keep `mu`, `nu` and `count`. For the name
      `"adam_ratio"`, `mofo` and `scale_by_mofo` use their own arguments. In the first
      step all scores are 1, up to `eps` and rounding, which then decides.

    Raises:
      TypeError: If an argument is not a number.
      ValueError: If an argument is out of range.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> score = mofo_jax.scores.adam_ratio(eps=1e-6)
      >>> optimizer = mofo_jax.scale_by_mofo(update_fraction=0.5, score=score)
      >>> gradient = jnp.array([1e-9, 1.])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0].round(5))
      [0.      0.99999]

    Source: the paper's MV-BCD, with the eps of the authors' code.
    """
    _checks.check_adam(0, b2, eps, eps_root)

    def ratio(tensor: Tensor) -> jax.Array:
        # Not `**`, which compiles anew for each count outside of `jax.jit`.
        correction = 1 - jax.lax.pow(jnp.asarray(b2, jnp.float32), tensor.count)
        second = _dtypes.widen(tensor.second_moment)
        root = jnp.sqrt(second / correction + eps_root)
        return _ratio(tensor, root + eps)

    return Score(ratio)


def random(seed: int = 0) -> Score:
    """Ranks at random, so that each step selects a new random mask.

    The random numbers depend only on the seed, the step count, the tensor's position in
    the tree and the coordinate. They are therefore the same after a run has resumed
    from a checkpoint and under any sharding, in Auto and Explicit meshes. Inside
    `shard_map`, shards along the axes of `axis_name` draw different numbers, and those
    along other axes the same ones.

    Args:
      seed: An integer.

    Returns:
      A `Score` for transformations that keep a `count`.

    Raises:
      TypeError: If `seed` is not an integer.
      ValueError: If it has more than 64 bits.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> optimizer = mofo_jax.mofo(
      ...   0.1, update_fraction=0.5, score=mofo_jax.scores.random(seed=1)
      ... )
      >>> params = jnp.ones(4)
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...   updates, state = optimizer.update(params, state)
      ...   print(int((updates != 0).sum()))
      2
      2

    Source: the paper's randomized BCD, which draws each coordinate independently; here
    the given fraction of a block is drawn, exactly with `ties="exact"` and otherwise up
    to equal random numbers.
    """
    _checks.check_integer("seed", seed, 64)

    def drawn(tensor: Tensor) -> jax.Array:
        kind = jax.typeof(tensor.gradient).sharding
        explicit = any(axis is not None for axis in kind.spec)
        key = _key(seed, tensor.count, tensor)
        # Above zero, since a coordinate that scores zero is never selected.
        return jax.random.uniform(
            key,
            jnp.shape(tensor.gradient),
            jnp.float32,
            minval=1e-6,
            out_sharding=kind if explicit else None,
        )

    return Score(drawn)


def random_tensors(
    seed: int = 0,
    *,
    every: int = 0,
    axes: tuple[int, ...] | PathRules[BlockAxes] = (),
) -> Score:
    """Ranks whole tensors, or slices of them, at random.

    All coordinates of a tensor, or of a slice, have the same score. With blocks across
    tensors this selects whole tensors; `half_fine_tuning` is built on it.

    Args:
      seed: An integer.
      every: The number of steps after which new scores are drawn; 0 keeps the first
        draw for the whole run.
      axes: The axes whose slices are drawn independently, such as the layers of a
        stacked tensor: a tuple of axis numbers, or `PathRules` of such tuples. Inside
        `shard_map`, all shards draw the same numbers, so these must not be divided.

    Returns:
      A `Score` for transformations that keep a `count`.

    Raises:
      TypeError: If `seed` or `every` is not an integer.
      ValueError: If `seed` has more than 64 bits or `every` more than 32, `every` is
        negative, or `axes` is invalid, for a tensor without a rule at the first update.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> optimizer = mofo_jax.mofo(
      ...   0.1, update_fraction=0.5, block_axes="all",
      ...   score=mofo_jax.scores.random_tensors(seed=1),
      ... )
      >>> params = [jnp.ones(2), jnp.ones(2)]
      >>> updates, _ = optimizer.update(params, optimizer.init(params))
      >>> print([bool(update.any()) for update in updates])
      [False, True]

    Source: ours, after HFT (Hui et al., arXiv 2404.18466).
    """
    _checks.check_integer("seed", seed, 64)
    _checks.check_integer("every", every, 32)
    if every < 0:
        raise ValueError(f"`every` must not be negative, got {every}")
    AXES.check(axes)

    def drawn(tensor: Tensor) -> jax.Array:
        value: Any = axes
        if isinstance(axes, PathRules):
            value = axes.value_at(tensor.path)
            if value is ...:
                raise ValueError(
                    f"`axes` has no default and no rule for {place(tensor.path)}"
                )
        shape = jnp.shape(tensor.gradient)
        kept = normalize_axes(value, len(shape), tensor.path, "axes")
        # The count starts at 1.
        stage = (tensor.count - 1) // every if every else jnp.zeros((), np.int32)
        key = _key(seed, stage, dataclasses.replace(tensor, axis_name=()))
        lengths = tuple(shape[axis] for axis in kept)
        numbers = jax.random.uniform(key, lengths, jnp.float32, minval=1e-6)
        others = inner_axes(len(shape), kept)
        # Zeros like the gradient give the sum the gradient's sharding.
        zeros = jnp.zeros_like(tensor.gradient, jnp.float32)
        return zeros + jnp.expand_dims(numbers, others)

    return Score(drawn)


def gain_for_cost(
    exponent: jax.typing.ArrayLike = 1.0, eps: jax.typing.ArrayLike = 1e-16
) -> Score:
    r"""Ranks by the expected gain on the task relative to its cost in forgetting.

    .. math:: m^2 / (v^p + \epsilon)

    To second order, the change on general text caused by a step is proportional to the
    Fisher information, which is approximated here by :math:`v`.

    Args:
      exponent: The power p of the second moment, in [0, 1].
      eps: Avoids division by zero for coordinates that never had a gradient, >= 0.

    Returns:
      A `Score` for transformations that keep `mu` and `nu`.

    Raises:
      TypeError: If an argument is not a number.
      ValueError: If an argument is out of range.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> score = mofo_jax.scores.gain_for_cost(exponent=0.5)
      >>> optimizer = mofo_jax.scale_by_mofo(update_fraction=0.5, score=score)
      >>> gradient = jnp.array([1., -3.])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0].round(2))
      [ 0. -1.]

    Source: ours.
    """
    _checks.check_number("exponent", exponent, "[0, 1]")
    _checks.check_number("eps", eps, "[0, inf)")

    def gain(tensor: Tensor) -> jax.Array:
        cost = _dtypes.widen(tensor.second_moment) ** exponent + eps
        # The square root has the same order and does not underflow.
        return _ratio(tensor, jnp.sqrt(cost))

    return Score(gain)


def gain_for_fisher(damping: jax.typing.ArrayLike) -> Score:
    r"""Ranks as `gain_for_cost` does, with a given Fisher information as the cost.

    .. math:: m^2 / (F + \lambda)

    Args:
      damping: The :math:`\lambda`, >= 0; a typical coordinate's Fisher information is a
        reasonable choice.

    Returns:
      A `Score` for transformations that keep `mu` and `fisher`, as
      `optax.chain(mofo_jax.baselines.keep_fisher(fisher), optax.adamw(...))` does.

    Raises:
      TypeError: If `damping` is not a number.
      ValueError: If `damping` is out of range.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> kept = mofo_jax.baselines.keep_fisher(jnp.array([100., 0.01]))
      >>> inner = optax.chain(kept, optax.sgd(1.0, 0.9))
      >>> optimizer = mofo_jax.momentum_filter(
      ...   inner, update_fraction=0.5, score=mofo_jax.scores.gain_for_fisher(1.0)
      ... )
      >>> gradient = jnp.array([3., 1.])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0])
      [ 0. -1.]

    Source: ours.
    """
    _checks.check_number("damping", damping, "[0, inf)")

    def gain(tensor: Tensor) -> jax.Array:
        cost = _dtypes.widen(tensor.fisher) + damping
        return _ratio(tensor, jnp.sqrt(cost))

    return Score(gain)


def _ratio(tensor: Tensor, cost: jax.Array) -> jax.Array:
    """Returns |m| / cost, which is 0 without momentum even where the cost is 0."""
    size = jnp.abs(_dtypes.widen(tensor.momentum))
    return jnp.where(size == 0, size, size / cost)


def _key(seed: int, number: jax.Array, tensor: Tensor) -> jax.Array:
    """Returns a PRNG key for a tensor and a number, different in each shard."""
    # Numbers of JAX's other generators may depend on the sharding.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)
    key = jax.random.fold_in(key, tensor.index)
    for name in differing(tensor.gradient, tensor.axis_name):
        key = jax.random.fold_in(key, jax.lax.axis_index(name))
    return key
