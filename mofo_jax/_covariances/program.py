"""The computation for a batch: sums over the inputs of each parameter."""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mofo_jax._covariances import layouts, positions, shardings, views
from mofo_jax._covariances.analysis import analyse
from mofo_jax._covariances.evaluation import Context, Plan, Source, run
from mofo_jax._covariances.layouts import Layout
from mofo_jax._covariances.methods import Sums
from mofo_jax._covariances.scope import Scope, Trait, Use


class Part(NamedTuple):
    """A covariance that is part of the sum of a parameter's covariance.

    Attributes:
      source: Its name in the program.
      layout: Its position in the sum.
      missing: The batch axes of the sum that it does not have.
    """

    source: Hashable
    layout: Layout
    missing: tuple[int, ...]


class Found(NamedTuple):
    """A parameter's axes, and the parts of its covariance."""

    axes: tuple[int, ...]
    batch_axes: tuple[int, ...]
    parts: tuple[Part, ...]


# Each parameter's axes, batch axes and the number of its sum, or None.
Form = tuple[tuple[tuple[int, ...], tuple[int, ...], int] | None, ...]
# The number of a parameter's sum in the program of each form.
SumName = tuple[Any, ...]


class Program(NamedTuple):
    """The computation for a batch.

    Attributes:
      plan: The plan for the jaxpr of `apply`.
      sources: The covariances that the plan computes.
      found: The covariance of each parameter, None if it has none.
      obstacles: For each parameter, the reasons why some of its uses do not count.
    """

    plan: Plan
    sources: dict[Hashable, Source]
    found: list[Found | None]
    obstacles: list[list[str]]

    def follows(self, number: int) -> bool:
        """Returns whether all positions of a parameter's inputs are known."""
        found = self.found[number]
        return found is None or all(
            self.sources[part.source].followed for part in found.parts
        )

    def sums(
        self, consts: Sequence[Any], arguments: Sequence[Any], weights: Any = None
    ) -> list[Sums]:
        """Returns the sums of a batch, one for each different input.

        Args:
          consts: The values of `plan.consts`, which `apply` closes over.
          arguments: The parameters and the batch.
          weights: The weights of positions, if there are any.
        """
        totals = {name: source.zeros() for name, source in self.sources.items()}
        context = Context(totals, weights)
        run(self.plan._replace(consts=consts), arguments, context)
        return [_sum(found.parts, context.totals) for found in self.inputs().values()]

    def zeros(self) -> list[Sums]:
        """Returns the sums of no batch."""
        totals = {name: source.zeros() for name, source in self.sources.items()}
        return [_sum(found.parts, totals) for found in self.inputs().values()]

    def form(self) -> Form:
        """Returns each parameter's axes, and the number of its sum."""
        order = {found.parts: i for i, found in enumerate(self.inputs().values())}
        return tuple(
            found and (found.axes, found.batch_axes, order[found.parts])
            for found in self.found
        )

    def inputs(self) -> dict[int, Found]:
        """Returns, for each different input, the first parameter that has it."""
        first: dict[tuple[Part, ...], tuple[int, Found]] = {}
        for number, found in enumerate(self.found):
            if found:
                first.setdefault(found.parts, (number, found))
        return dict(first.values())

    def shardings(self, params: Sequence[Any]) -> list[NamedSharding | None]:
        """Returns the shardings of the sums for each input.

        Args:
          params: The parameters.
        """
        result = []
        for number, (axes, batch_axes, _) in self.inputs().items():
            param = params[number]
            length = math.prod(param.shape[axis] for axis in axes)
            result.append(shardings.follow(param, axes, batch_axes, length))
        return result


def _sum(parts: Sequence[Part], totals: dict[Hashable, Sums]) -> Sums:
    matrices, counts = [], []
    for source, layout, missing in parts:
        matrix, count = totals[source]
        matrices.append(jnp.expand_dims(layouts.place(layout, matrix), missing))
        counts.append(jnp.expand_dims(layouts.place_count(layout, count), missing))
    return sum(matrices[1:], matrices[0]), sum(counts[1:], counts[0])


def make_program(
    apply: Callable[[Any, Any], Any], params: Any, batch: Any, weights: Any
) -> Program:
    """Finds the computation for batches of one type.

    Args:
      apply: As in `input_covariances`.
      params: The first argument of `apply`.
      batch: The second argument of `apply`.
      weights: The type of the weights; None if all positions have the same weight.
    """
    leaves, structure = jax.tree.flatten((params, batch))

    def flat(*leaves: Any) -> list[Any]:
        results = jax.tree.leaves(apply(*structure.unflatten(leaves)))
        return [leaf for leaf in results if isinstance(leaf, jax.Array)]

    closed = jax.make_jaxpr(flat)(*leaves)
    shape = () if weights is None else tuple(weights.shape)
    scope = Scope(weights=shape)
    own = len(jax.tree.leaves(params))
    types = list(map(jax.typeof, leaves))
    arguments = [
        _argument(scope, aval, i if i < own else None, shape)
        for i, aval in enumerate(types)
    ]
    shapes = [jnp.shape(leaf) for leaf in leaves[own:]]
    fits = any(one[: len(shape)] == shape for one in shapes)
    if weights is not None and not (shape and fits):
        raise ValueError(
            "`weights` must have the leading axes of an array of the batch, got shape "
            f"{shape} for arrays of shapes {shapes}"
        )
    plan, _ = analyse(closed, arguments, scope)
    uses: list[list[Use]] = [[] for _ in range(own)]
    for use in scope.uses:
        uses[use.param].append(use)
    found, obstacles = [], []
    for number, those in enumerate(uses):
        met = list(scope.obstacles.get(number, {}))
        if not jnp.issubdtype(types[number].dtype, jnp.floating):
            met.append("its dtype is not a real floating-point one")
        axes = {use.arrangement.axes for use in those}
        if len(axes) > 1:
            met.append(f"products contract different axes of it: {sorted(axes)}")
        found.append(_combine(those) if len(axes) == 1 else None)
        obstacles.append(met)
    return Program(plan, scope.sources, found, obstacles)


def _argument(
    scope: Scope, aval: Any, param: int | None, weights: Sequence[int]
) -> Trait:
    trait = scope.unknown(aval)
    if param is None:
        return trait._replace(positions=positions.of_input(aval.shape, weights))
    if jnp.issubdtype(aval.dtype, jnp.floating):
        return trait._replace(view=views.whole_view(param, aval.shape))
    return trait


def _combine(uses: Sequence[Use]) -> Found:
    """Combines the uses of one parameter."""
    each = [use.arrangement for use in uses]
    # An index along an axis of outputs, such as a column, has the input of the others.
    outputs = {
        axis
        for axis in itertools.chain(*(one.chosen for one in each))
        if any(axis not in one.batch_axes for one in each)
        and all(axis in one.chosen for one in each if axis in one.batch_axes)
    }
    for axis in outputs:
        each = [one.without(axis) if axis in one.chosen else one for one in each]
    batch_axes = sorted({axis for one in each for axis in one.batch_axes})
    parts = []
    for use, one in zip(uses, each, strict=True):
        missing = tuple(
            i for i, axis in enumerate(batch_axes) if axis not in one.batch_axes
        )
        parts.append(Part(use.source, one.layout, missing))
    # If each part of a kernel is multiplied with the same input, it counts once.
    times = collections.Counter(parts)
    common = math.gcd(*times.values())
    parts = [part for part, n in times.items() for _ in range(n // common)]
    return Found(uses[0].arrangement.axes, tuple(batch_axes), tuple(parts))


def merge(totals: list[list[Sums]], names: list[SumName]) -> dict[SumName, Sums]:
    """Returns the sums over programs of all forms.

    Args:
      totals: The sums of the programs of each form.
      names: For each parameter, the name of its sum. Parameters share a covariance if
        they have the same input in all forms.
    """
    merged = {}
    for sum_name in dict.fromkeys(names):
        if None not in sum_name:
            first, *others = (sums[i] for sums, i in zip(totals, sum_name, strict=True))
            for other in others:
                first = jax.tree.map(_add, first, other)
            merged[sum_name] = first
    return merged


def _add(one: Any, other: Any) -> Any:
    return one if isinstance(one, jax.ShapeDtypeStruct) else one + other


def mean(sums: dict[SumName, Sums]) -> dict[SumName, jax.Array]:
    """Returns the means of sums."""
    matrices, counts = ([pair[i] for pair in sums.values()] for i in (0, 1))
    return dict(zip(sums, _divided(matrices, counts), strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _divided(matrices: list[jax.Array], counts: list[jax.Array]) -> list[jax.Array]:
    """Returns the means, which are zero where the counts are zero.

    The geometric mean of the counts of two indices keeps a matrix positive semidefinite
    if these differ, because a product contracts only a part of the indices.
    """
    means = []
    for matrix, count in zip(matrices, counts, strict=True):
        some = jnp.where(count > 0, count, 1)
        # Two divisions, since the product of two counts may overflow.
        root = jnp.sqrt(some)
        means.append(matrix / root[..., :, None] / root[..., None, :])
    return means
