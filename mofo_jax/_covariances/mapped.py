"""`shard_map`, run again with the sums of all devices as additional results."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mofo_jax._covariances import jaxprs, pieces, positions, views
from mofo_jax._covariances.evaluation import Context, Plan, Source, run
from mofo_jax._covariances.exits import Analyse, Analysed, Exit, find_exits
from mofo_jax._covariances.pieces import Axes, Piece
from mofo_jax._covariances.scope import Scope, Trait, Use

# For each axis of an array, the mesh axes over which it is sharded.
Division = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """Runs `shard_map` with the sums of each device among its results.

    Attributes:
      plan: The plan of each device.
      exits: The sums that leave it, each with the division of its batch axes.
      sources: The sums of each device.
      weights: The division of the weights of positions.
      names: The mesh axes of the map.
    """

    plan: Plan
    exits: list[tuple[Exit, Division]]
    sources: dict[Hashable, Source]
    weights: Division
    names: tuple[str, ...]

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        params = equation.params
        in_specs, out_specs = params["in_specs"], params["out_specs"]

        def call(weights: Any, *arguments: Any) -> Any:
            totals = {name: source.zeros() for name, source in self.sources.items()}
            inner = Context(totals, weights)
            results = run(self.plan, arguments, inner)
            placed = [way.placed(inner.totals[way.inner]) for way, _ in self.exits]
            return tuple(results), jax.tree.map(lambda x: x[None], placed)

        sums = []
        for _, batch in self.exits:
            others = tuple(n for n in self.names if n not in sum(batch, ()))
            spec = PartitionSpec(others or None, *(over or None for over in batch))
            sums.append((spec, spec))
        weights = PartitionSpec(*(over or None for over in self.weights))
        mapped = jax.shard_map(
            call,
            mesh=params["mesh"],
            in_specs=(weights, *in_specs),
            out_specs=(tuple(out_specs), sums),
            axis_names=set(self.names),
            check_vma=params["check_vma"],
        )
        results, placed = mapped(context.weights, *operands)
        for (way, _), pair in zip(self.exits, placed, strict=True):
            # Devices with the same data add equal terms to the sum and to the count.
            way.leave((jnp.sum(pair[0], axis=0), jnp.sum(pair[1], axis=0)), context)
        return list(results)


def analyse_shard_map(
    equation: Any, given: list[Trait], scope: Scope, analyse: Analyse
) -> Analysed:
    """Analyses the computation of each device."""
    params = equation.params
    names = jaxprs.manual_axes(params)
    sizes = {name: size for name, size in params["mesh"].shape.items() if name in names}
    invars = jaxprs.opened(params["jaxpr"])[0].invars
    over = [
        _division(spec, var.aval.ndim)
        for spec, var in zip(params["in_specs"], invars, strict=True)
    ]
    weights: dict[int, tuple[str, ...]] = {}
    along = [
        _divided(trait.positions, division, sizes, scope.weights, weights)
        for trait, division in zip(given, over, strict=True)
    ]
    local = tuple(
        size // _count(weights.get(axis, ()), sizes)
        for axis, size in enumerate(scope.weights)
    )
    inner = Scope({**scope.mesh, **sizes}, local)
    arguments = []
    for i, (trait, var) in enumerate(zip(given, invars, strict=True)):
        view = None
        if trait.view:
            outside = [views.sharded(trait.view, axis) for axis in range(var.aval.ndim)]
            shards = tuple((*a, *b) for a, b in zip(outside, over[i], strict=True))
            view = views.whole_view(i, var.aval.shape, shards)
        number = inner.number(("given", trait.number, over[i]))
        arguments.append(trait._replace(number=number, view=view, positions=along[i]))
    plan, ends = analyse(params["jaxpr"], arguments, inner)
    results = []
    for end, var, spec in zip(ends, equation.outvars, params["out_specs"], strict=True):
        back = _gathered(end.positions, var.aval.shape, spec, scope.weights, weights)
        results.append(Trait(scope.number(), back))
    number, leaving = scope.number(), zip(ends, equation.outvars, strict=True)
    exits = find_exits(inner, scope, given, leaving, number, len(given))
    if not exits:
        return None, results
    shapes = [var.aval.shape for var in invars]
    ways = [(way, _batch_division(way.use, shapes, over)) for way in exits]
    division = tuple(weights.get(axis, ()) for axis in range(len(scope.weights)))
    return _Mapped(plan, ways, inner.sources, division, tuple(sizes)), results


def _division(spec: Any, rank: int) -> Division:
    names = [(n,) if isinstance(n, str) else tuple(n or ()) for n in spec]
    return (*names, *[()] * (rank - len(names)))


def _count(names: Sequence[str], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in names)


def _batch_division(use: Use, shapes: Any, over: Sequence[Division]) -> Division:
    """Returns the division of the batch axes of a device's covariance."""
    lengths = use.arrangement.layout.sizes
    pairs = zip(use.arrangement.batch_axes, lengths, strict=False)
    # An axis whose shards were all gathered is not divided.
    return tuple(
        over[use.param][axis] if size == shapes[use.param][axis] else ()
        for axis, size in pairs
    )


def _divided(
    axes: Axes,
    over: Division,
    sizes: Mapping[str, int],
    shape: Sequence[int],
    weights: dict[int, tuple[str, ...]],
) -> Axes:
    """Returns how the axes of a device's shard correspond to those of its weights.

    Args:
      axes: The correspondence of the whole array.
      over: The division of the array.
      sizes: The sizes of the mesh axes.
      shape: The shape of the weights.
      weights: The division of the weights as far as it is known; divisions that follow
        from the array's axes are added.
    """
    result: list[tuple[Piece, ...]] = []
    for digits, names in zip(axes, over, strict=True):
        length = pieces.length(digits) // _count(names, sizes)
        axis = positions.single(digits)
        known = (
            axis is not None
            and digits == (Piece(axis, shape[axis]),)
            and weights.setdefault(axis, names) == names
        )
        result.append(_axis(axis if known else None, digits, length))
    return tuple(result)


def _axis(
    known: int | None, before: tuple[Piece, ...], length: int
) -> tuple[Piece, ...]:
    """Returns an axis of the weights; of an unknown one, the positions are lost."""
    if known is None:
        return positions.reordered(before, length)
    return pieces.axes_of([known], [length])[0]


def _gathered(
    axes: Axes,
    shape: Sequence[int],
    spec: Any,
    whole: Sequence[int],
    weights: Mapping[int, tuple[str, ...]],
) -> Axes:
    """Returns how the axes of a whole array correspond to those of the weights.

    Args:
      axes: The correspondence of a device's shard.
      shape: The shape of the array.
      spec: The division of the array.
      whole: The shape of the weights.
      weights: The division of the weights.
    """
    result: list[tuple[Piece, ...]] = []
    for digits, length, names in zip(
        axes, shape, _division(spec, len(shape)), strict=True
    ):
        axis = positions.single(digits)
        known = (
            axis is not None
            and (length, digits[0].offset) == (whole[axis], 0)
            and weights.get(axis, ()) == names
        )
        result.append(_axis(axis if known else None, digits, length))
    return tuple(result)
