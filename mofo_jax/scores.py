r"""What ranks the coordinates of a tensor: `momentum_filter`'s option `score`.

A score is a function from a `Tensor` to an array of its shape: coordinates with larger
magnitudes move, and those with a score of zero never do. `momentum_filter` takes the
name of a score, such as `"momentum"`, any such function, or a `Score`, which wraps one
in a form that `optax.inject_hyperparams` does not mistake for a schedule. The functions
here make scores that have arguments.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mofo_jax import _checks, _dtypes
from mofo_jax._options.blocks import BlockAxes, inner_axes, normalize_axes
from mofo_jax._options.path_rules import PathRules
from mofo_jax._score_inputs import Function as Function
from mofo_jax._score_inputs import Score as Score
from mofo_jax._score_inputs import Tensor as Tensor

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
    r"""Ranks by the size of Adam's step.

    .. math:: |m| / (\sqrt{\hat v + \bar\epsilon} + \epsilon)

    Args:
      b2: Adam's decay rate of the second moment, in [0, 1).
      eps: Adam's eps, >= 0.
      eps_root: Adam's eps_root, >= 0.

    Returns:
      A `Score` for transformations that keep `mu`, `nu` and `count`. `mofo` and
      `scale_by_mofo` make `"adam_ratio"` from their own arguments.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> score = mofo_jax.scores.adam_ratio(eps=1e-6)
      >>> optimizer = mofo_jax.scale_by_mofo(update_fraction=0.5, score=score)
      >>> gradient = jnp.array([1e-9, 1.])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0].round(5))
      [0.      0.99999]

    Source: the paper's MV-BCD, with the eps of the authors' code.
    """

    def ratio(tensor: Tensor) -> jax.Array:
        correction = 1 - jnp.asarray(b2, jnp.float32) ** tensor.count
        second = _dtypes.widen(tensor.second_moment)
        root = jnp.sqrt(second / correction + eps_root)
        return jnp.abs(_dtypes.widen(tensor.momentum)) / (root + eps)

    return Score(ratio)


def random(seed: int = 0) -> Score:
    """Ranks at random: a fresh mask in each step.

    The numbers depend on the seed, the step's count, the tensor's place in the tree and
    the coordinate alone: the same after a checkpoint and under any sharding, in Auto
    and Explicit meshes. Inside `shard_map` each shard draws its own.

    Args:
      seed: An integer.

    Returns:
      A `Score` for transformations that keep a `count`.

    Raises:
      TypeError: If `seed` is not an integer.

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

    Source: the paper's randomised BCD; there each coordinate is drawn by itself, here
    exactly the fraction of a block.
    """
    _check_integer("seed", seed)

    def drawn(tensor: Tensor) -> jax.Array:
        kind = jax.typeof(tensor.gradient).sharding
        explicit = any(axis is not None for axis in kind.spec)
        key = _key(seed, tensor.count, tensor)
        # Any number but zero, which is never selected.
        return jax.random.uniform(
            key,
            jnp.shape(tensor.gradient),
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
    """Ranks whole tensors, or slices of them, at random; redrawn from time to time.

    With blocks across tensors this selects tensors as a whole. It is what
    `half_fine_tuning` is made of.

    Args:
      seed: An integer.
      every: For how many steps a draw holds; 0 for ever.
      axes: The axes along which slices are drawn by themselves, as the layers of a
        stacked tensor: a tuple of axis numbers, or `PathRules` of such tuples.

    Returns:
      A `Score` for transformations that keep a `count`.

    Raises:
      TypeError: If `seed` or `every` is not an integer.
      ValueError: If `every` is negative.

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
    _check_integer("seed", seed)
    _check_integer("every", every)
    if every < 0:
        raise ValueError(f"`every` must not be negative, got {every}")

    def drawn(tensor: Tensor) -> jax.Array:
        value: Any = axes
        if isinstance(axes, PathRules):
            value = axes.value_at(tensor.path)
        shape = jnp.shape(tensor.gradient)
        kept = normalize_axes(value, len(shape), tensor.path)
        # The count starts at 1.
        stage = (tensor.count - 1) // every if every else jnp.zeros((), np.int32)
        key = _key(seed, stage, dataclasses.replace(tensor, axis_name=()))
        lengths = tuple(shape[axis] for axis in kept)
        numbers = jax.random.uniform(key, lengths, minval=1e-6)
        others = inner_axes(len(shape), kept)
        # Added to zeros of the gradient's, so that it is sharded as that is.
        zeros = jnp.zeros_like(tensor.gradient, jnp.float32)
        return zeros + jnp.expand_dims(numbers, others)

    return Score(drawn)


def gain_for_cost(
    exponent: jax.typing.ArrayLike = 1.0, eps: jax.typing.ArrayLike = 1e-16
) -> Score:
    r"""Ranks by what a step gains on the task for what it costs.

    .. math:: m^2 / (v^p + \epsilon)

    To second order a step changes general text in proportion to the Fisher information,
    for which :math:`v` stands in here.

    Args:
      exponent: The power p of the second moment, in [0, 1].
      eps: Keeps coordinates that never had a gradient from dividing by zero, > 0.

    Returns:
      A `Score` for transformations that keep `mu` and `nu`.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> score = mofo_jax.scores.gain_for_cost(exponent=0.5)
      >>> optimizer = mofo_jax.scale_by_mofo(update_fraction=0.5, score=score)
      >>> gradient = jnp.array([1., -3.])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0].round(2))
      [ 0. -1.]

    Source: ours.
    """
    _checks.check_number("exponent", exponent, 0, 1 + 1e-9)

    def gain(tensor: Tensor) -> jax.Array:
        cost = _dtypes.widen(tensor.second_moment) ** exponent + eps
        # The root, of the same order, whose square does not vanish.
        return jnp.abs(_dtypes.widen(tensor.momentum)) / jnp.sqrt(cost)

    return Score(gain)


def gain_for_fisher(damping: jax.typing.ArrayLike) -> Score:
    r"""Ranks by gain for cost with a given Fisher information.

    .. math:: m^2 / (F + \lambda)

    Args:
      damping: The lambda, > 0: about the Fisher information of a typical coordinate.

    Returns:
      A `Score` for transformations that keep `mu` and `fisher`, as
      `optax.chain(mofo_jax.baselines.keep_fisher(fisher), optax.adamw(...))` does.

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
    _checks.check_number("damping", damping, 0)

    def gain(tensor: Tensor) -> jax.Array:
        cost = _dtypes.widen(tensor.fisher) + damping
        return jnp.abs(_dtypes.widen(tensor.momentum)) / jnp.sqrt(cost)

    return Score(gain)


def _key(seed: int, number: jax.Array, tensor: Tensor) -> jax.Array:
    """Returns a key for one tensor and one number, in each shard its own."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    key = jax.random.fold_in(key, tensor.index)
    for name in tensor.axis_name:
        key = jax.random.fold_in(key, jax.lax.axis_index(name))
    return key


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
