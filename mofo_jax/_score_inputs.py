"""What a score is shown: one tensor, with what the optimizer keeps for it."""

import dataclasses
from collections.abc import Callable

import jax
import optax

from mofo_jax._moments import Moments


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor as a score sees it, after the inner transformation has run.

    Attributes:
      gradient: The update that the filter was given, of the tensor's shape.
      update: What the inner transformation makes of it, before the filter.
      index: The tensor's number in the tree of updates.
      path: The parameter's path, as in `layers/0/attention/query/kernel`.
      axis_name: The mesh axes of `shard_map` over which the tensor is sharded.
    """

    gradient: jax.Array
    update: jax.Array
    index: int
    path: str
    axis_name: tuple[str, ...]
    _moments: Moments
    _params: optax.Params | None

    @property
    def momentum(self) -> jax.Array:
        """The first moment that the inner transformation keeps (`mu`, `trace`, `m`).

        Raises:
          ValueError: If it keeps none, or two, for this tensor.
        """
        return self._moments.momentum(self.index)

    @property
    def second_moment(self) -> jax.Array:
        """The second moment that the inner transformation keeps (`nu`).

        Raises:
          ValueError: If it keeps none, or two, for this tensor.
        """
        return self._moments.second_moment(self.index)

    @property
    def fisher(self) -> jax.Array:
        """The Fisher information that the inner transformation keeps (`keep_fisher`).

        Raises:
          ValueError: If it keeps none, or two, for this tensor.
        """
        return self._moments.fisher(self.index)

    @property
    def count(self) -> jax.Array:
        """The number of this step, from 1: an integer of shape ().

        Raises:
          ValueError: If the inner transformation does not count.
        """
        return self._moments.count()

    @property
    def param(self) -> jax.Array:
        """The parameter before this step.

        Raises:
          ValueError: If `update` was not given the parameters.
        """
        if self._params is None:
            raise ValueError(
                "this `score` ranks by the parameters: `update` must be given `params`"
            )
        return jax.tree.leaves(self._params)[self.index]


Function = Callable[[Tensor], jax.Array]


@dataclasses.dataclass(frozen=True)
class Score:
    """A function from a `Tensor` to scores, in a form that is not callable.

    `optax.inject_hyperparams` takes callables for schedules and leaves this alone.

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
