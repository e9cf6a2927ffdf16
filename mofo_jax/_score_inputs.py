"""The argument of a score: one tensor, with the optimizer's state for it."""

import dataclasses
from collections.abc import Callable

import jax

from mofo_jax._moments import FISHER, MOMENTUM, SECOND_MOMENT, Moments


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The argument of a score: one tensor, after the inner transformation has run.

    Attributes:
      gradient: The update that the filter received, of the tensor's shape.
      update: The update that the inner transformation returned, before the filter.
      index: The tensor's position among the leaves of the updates.
      path: The parameter's path, such as `layers/0/attention/query/kernel`.
      axis_name: The mesh axes of `shard_map` that divide the tensor's blocks.
    """

    gradient: jax.Array
    update: jax.Array
    index: int
    path: str
    axis_name: tuple[str, ...]
    _moments: Moments
    _params: Callable[[], list[jax.Array] | None]

    @property
    def momentum(self) -> jax.Array:
        """The first moment in the inner transformation's state (`mu`, `trace`, `m`).

        Raises:
          ValueError: If the state holds none, or two, for this tensor.
        """
        return self._moments.find(MOMENTUM, self.index)

    @property
    def second_moment(self) -> jax.Array:
        """The second moment in the inner transformation's state (`nu`).

        Raises:
          ValueError: If the state holds none, or two, for this tensor.
        """
        return self._moments.find(SECOND_MOMENT, self.index)

    @property
    def fisher(self) -> jax.Array:
        """The Fisher information in the inner transformation's state (`fisher`).

        Raises:
          ValueError: If the state holds none, or two, for this tensor.
        """
        return self._moments.find(FISHER, self.index)

    @property
    def count(self) -> jax.Array:
        """The number of the current step, counting from 1: an integer of shape ().

        Raises:
          ValueError: If the inner transformation's state holds no step count.
        """
        return self._moments.count

    @property
    def param(self) -> jax.Array:
        """The parameter before this step.

        Raises:
          ValueError: If `update` was not given the parameters.
        """
        params = self._params()
        if params is None:
            raise ValueError(
                "`params` must be given to `update`: this `score` ranks by parameters"
            )
        return params[self.index]


Function = Callable[[Tensor], jax.Array]
"""A function from a `Tensor` to a real or complex array of the tensor's shape."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Wraps a function from a `Tensor` to scores in an object that is not callable.

    `optax.inject_hyperparams` treats callables as schedules, but leaves a `Score`
    unchanged.

    Args:
      function: Returns a real or complex array of the tensor's shape.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax, optax
      >>> largest = mofo_jax.scores.Score(lambda tensor: jnp.abs(tensor.param))
      >>> optimizer = mofo_jax.mofo(0.1, update_fraction=0.5, score=largest)
      >>> params = jnp.array([1., -4., 3., 2.])
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(updates.round(1))
      [ 0.   0.1 -0.1  0. ]

    Source: ours.
    """

    function: Function
