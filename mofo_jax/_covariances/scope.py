"""Facts about arrays before a program runs, and the uses of parameters."""

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
    """The facts that are known about an array before the program runs.

    Attributes:
      number: Equal for equal arrays.
      positions: How its axes correspond to those of the weights.
      view: How it relabels the coordinates of a parameter, or None.
      uniform: Whether its coordinates are known to be equal.
      iota: The axis along which it is a range of integers from 0, or None.
      lookup: The axis along which it is a one-hot encoding, or None. It may have been
        multiplied by something.
    """

    number: Hashable
    positions: Axes
    view: View | None = None
    uniform: bool = False
    iota: int | None = None
    lookup: int | None = None


class Use(NamedTuple):
    """A parameter's use in a product.

    Attributes:
      param: The parameter's number.
      source: The name of the other factor's covariance.
      arrangement: The position of this covariance.
    """

    param: int
    source: Hashable
    arrangement: Arrangement


class Scope:
    """The uses of parameters in a jaxpr and those that it calls.

    The body of a loop, and any other jaxpr that runs in a separate function, has a
    scope. Its parameters are the arguments that are views of parameters outside.

    Attributes:
      uses: The parameters' uses in products.
      sources: The types of the covariances that they need.
      obstacles: For each parameter, reasons why it is not followed further, and why
        products are not used.
      used: The variables of the present jaxpr on which its results depend.
      followed: Whether obstacles matter, as they do if a result of the present equation
        is used.
      mesh: The sizes of the mesh axes of `shard_map`.
      weights: The shape of the weights of positions, () if there are none.
      moved: The shapes of the weights after each move of positions so far, by the
        number of its result.
    """

    def __init__(
        self,
        mesh: Mapping[str, int] = MappingProxyType({}),
        weights: tuple[int, ...] = (),
    ) -> None:
        """Makes an empty scope."""
        self.mesh = mesh
        self.weights = weights
        self.moved: dict[Hashable, tuple[int, ...]] = {}
        self.uses: list[Use] = []
        self.sources: dict[Hashable, Source] = {}
        self.obstacles: dict[int, dict[str, None]] = {}
        self.used: set[Any] = set()
        self.followed = True
        self._numbers: dict[Hashable, int] = {}
        self._count = itertools.count()

    @property
    def all_weights(self) -> list[tuple[int, ...]]:
        """The shapes of the weights of positions and of those after moves."""
        return [self.weights, *self.moved.values()]

    def number(self, key: Hashable = None) -> int:
        """Returns a number, the same for the same key, or a new one without a key."""
        if key is not None:
            try:
                return self._numbers.setdefault(key, next(self._count))
            except TypeError:  # It has a part without a hash.
                pass
        return next(self._count)

    def obstruct(self, view: View, reason: str) -> None:
        """Records why a view is not followed further, or why a product is not used."""
        if self.followed:
            self.obstacles.setdefault(view.param, {})[reason] = None

    def unknown(self, aval: Any, key: Hashable = None) -> Trait:
        """Returns the trait of an array of which only the type is known.

        Args:
          aval: The array's type.
          key: A key that is equal for equal arrays.
        """
        shape = getattr(aval, "shape", ())
        uniform = math.prod(shape) == 1
        return Trait(self.number(key), pieces.unrelated(shape), uniform=uniform)
