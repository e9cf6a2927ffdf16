"""What is known of arrays before a program runs, and what is found of parameters."""

import itertools
import math
from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mofo_jax._covariances import pieces
from mofo_jax._covariances.evaluation import Source
from mofo_jax._covariances.pieces import Axes
from mofo_jax._covariances.views import Arrangement, View


class Trait(NamedTuple):
    """What is known of an array before the program runs.

    Attributes:
      number: Equal for arrays that are.
      positions: Which of its axes belong to those of the weights.
      view: If it relabels the coordinates of a parameter, how.
      uniform: Whether its coordinates are known to be the same number.
      lookup: Whether it tells by ones and zeros which index something else has.
    """

    number: Hashable
    positions: Axes
    view: View | None = None
    uniform: bool = False
    lookup: bool = False


class Use(NamedTuple):
    """A parameter's use in a product.

    Attributes:
      param: The parameter's number.
      source: Names the covariance of the other factor.
      arrangement: Where this covariance belongs.
    """

    param: int
    source: Hashable
    arrangement: Arrangement


class Scope:
    """What is found of some parameters in a jaxpr and those that it calls.

    The body of a loop, or whatever else runs in a function of its own, is a scope of
    its own, whose parameters are those of its arguments that are views of one outside.

    Attributes:
      uses: The parameters' uses in products.
      sources: The types of the covariances that they need.
      obstacles: For each parameter, why it is not followed further, and why products
        are no use.
      mesh: The sizes of the mesh axes that `shard_map` maps over.
      weights: The shape of the weights of positions, () if there are none.
    """

    def __init__(
        self,
        mesh: Mapping[str, int] = MappingProxyType({}),
        weights: tuple[int, ...] = (),
    ) -> None:
        """Makes a scope in which nothing has been found."""
        self.mesh = mesh
        self.weights = weights
        self.uses: list[Use] = []
        self.sources: dict[Hashable, Source] = {}
        self.obstacles: dict[int, dict[str, None]] = {}
        self._numbers: dict[Hashable, int] = {}
        self._count = itertools.count()

    def number(self, key: Hashable = None) -> int:
        """Returns a number, the same for the same key; without a key a new one."""
        if key is not None:
            try:
                return self._numbers.setdefault(key, next(self._count))
            except TypeError:  # Something in it has no hash.
                pass
        return next(self._count)

    def obstruct(self, view: View, reason: str) -> None:
        """Notes why a view is not followed further, or why a product is no use."""
        self.obstacles.setdefault(view.param, {})[reason] = None

    def unknown(self, aval: Any, key: Hashable = None) -> Trait:
        """Returns what is known of an array of which nothing but its type is.

        Args:
          aval: Its type.
          key: Equal for arrays that are.
        """
        shape = getattr(aval, "shape", ())
        uniform = math.prod(shape) == 1
        return Trait(self.number(key), pieces.unrelated(shape), uniform=uniform)
