"""The traits of one equation's results, and the step that runs at it."""

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from mofo_jax._covariances import (
    moves,
    pieces,
    positions,
    products,
    propagation,
    relabelling,
    views,
    weighting,
)
from mofo_jax._covariances.evaluation import Context, Source, Step, evaluate
from mofo_jax._covariances.methods import Dot
from mofo_jax._covariances.scope import Scope, Trait, Use
from mofo_jax._covariances.views import UnfitError, View

_SCALED = frozenset({"div", "mul"})
# After these, a one-hot encoding still has at most one coordinate that is not 0.
_MASKED = frozenset({"div", "mul", "neg"})
# Primitives that keep the order of coordinates also keep their traits.
_PLAIN = relabelling.UNCHANGED | relabelling.RULES.keys()


def analyse(
    equation: Any, given: list[Trait], scope: Scope
) -> tuple[Step | None, list[Trait]]:
    """Returns the step of an equation, if it needs one, and its results' traits.

    Args:
      equation: The equation of a primitive that calls no jaxpr.
      given: The operands' traits.
      scope: Where uses of parameters are recorded.
    """
    outs = [var.aval for var in equation.outvars]
    seen = [view is not None for view in (trait.view for trait in given)]
    step: Step | None = None
    followed: list[View | None] = [None] * len(outs)
    name = equation.primitive.name
    if any(seen):
        if name in products.PRIMITIVES:
            step = _product(equation, given, scope)
        elif name == "dynamic_slice" and given[0].view:
            step, followed = _dynamic_slice(equation, given[0].view)
        elif name == "all_gather" and given[0].view:
            followed = [_all_gather(equation, given[0].view, scope)]
        else:
            followed = _follow(equation, given, outs)
        if name not in products.PRIMITIVES and not any(followed):
            for trait in given:
                if trait.view:
                    scope.obstruct(trait.view, f"it is an operand of {name}")
    traits = _results(equation, given, scope, outs)
    if given and moves.is_move(equation, given[0].positions):
        step, traits[0] = moves.follow(equation, given[0].positions, traits[0], scope)
    pairs = zip(traits, followed, strict=True)
    return step, [trait._replace(view=view) for trait, view in pairs]


def _results(
    equation: Any, given: list[Trait], scope: Scope, outs: list[Any]
) -> list[Trait]:
    name, params = equation.primitive.name, equation.params
    key: Hashable = None
    if not equation.effects:
        numbers = tuple(trait.number for trait in given)
        key = name, tuple(sorted(params.items())), numbers
    along = propagation.propagate(
        name,
        params,
        [trait.positions for trait in given],
        [atom.aval for atom in equation.invars],
        outs,
        len(scope.weights),
    )
    plain = name in _PLAIN
    uniform = plain and all(trait.uniform for trait in given)
    iotas = [
        _follow_axis(equation, i, t.iota, given) for i, t in enumerate(given) if plain
    ]
    lookups = [_follow_axis(equation, i, t.lookup, given) for i, t in enumerate(given)]
    if name == "iota":
        iotas = [[params["dimension"]]]
    elif name == "eq":
        # A comparison with a constant number makes a mask, which looks nothing up.
        constant = any(isinstance(atom, core.Literal) for atom in equation.invars)
        lookups = [[None if constant else t.iota] for t in given]
    number = scope.number(key)
    results = []
    for i, (out, axes) in enumerate(zip(outs, along, strict=True)):
        trait = scope.unknown(out, (number, i))
        results.append(
            trait._replace(
                positions=axes,
                uniform=trait.uniform or uniform,
                iota=next((axes[i] for axes in iotas if axes[i] is not None), None),
                lookup=next((axes[i] for axes in lookups if axes[i] is not None), None),
            )
        )
    return results


def _follow_axis(
    equation: Any, number: int, axis: int | None, given: list[Trait]
) -> list[int | None]:
    """Returns where an axis of an operand is in each result, None where it is not."""
    name, outs = equation.primitive.name, [var.aval for var in equation.outvars]
    shape = equation.invars[number].aval.shape
    if axis is None:
        return [None] * len(outs)
    if name in relabelling.RULES and number == 0:
        own = (pieces.Piece(axis, shape[axis]),)
        found = relabelling.relabel(name, pieces.whole(shape), equation.params, outs)
        return [
            axes.index(own) if axes is not None and own in axes else None
            for axes in found
        ]
    kept = name in relabelling.UNCHANGED or name in _MASKED
    if name == "select_n":
        # A mask of an array is no lookup, unless the array is one.
        cases = given[1:]
        kept = all(one.uniform or one.lookup == axis for one in cases)
    return [
        axis
        if kept and pieces.expands(shape, out.shape) and shape[axis] == out.shape[axis]
        else None
        for out in outs
    ]


def _follow(equation: Any, given: list[Trait], outs: list[Any]) -> list[View | None]:
    """Returns views of the results if an equation relabels or scales a view."""
    name = equation.primitive.name
    if name in relabelling.UNCHANGED and len(given) == len(outs):
        return [trait.view for trait in given]
    if name in relabelling.RULES and given[0].view:
        return views.relabel(given[0].view, name, equation.params, outs)
    if name == "neg":
        return [given[0].view]
    if name in _SCALED:
        first, second = given
        if first.view and second.uniform:
            return [views.expand(first.view, outs[0].shape)]
        if name == "mul" and second.view and first.uniform:
            return [views.expand(second.view, outs[0].shape)]
    return [None] * len(outs)


def _all_gather(equation: Any, view: View, scope: Scope) -> View | None:
    """Follows a view through an `all_gather` of its shards along an axis."""
    params = equation.params
    axis, names = params["all_gather_dimension"], params["axis_name"]
    names = (names,) if isinstance(names, str) else tuple(names)
    whole = params["tiled"] and params["axis_index_groups"] is None
    if not whole or views.sharded(view, axis) != names:
        return None
    try:
        return views.gather(view, [axis], scope.mesh)
    except UnfitError:
        return None


@dataclasses.dataclass(frozen=True)
class _NoteIndices:
    """Records indices of views that are known only when the program runs."""

    indices: tuple[tuple[Hashable, int, int], ...]

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        for key, operand, size in self.indices:
            # A slice that would exceed the bounds is moved inside.
            context.indices[key] = jnp.clip(operands[operand], 0, size - 1)
        return evaluate(equation, operands, context)


def _dynamic_slice(equation: Any, view: View) -> tuple[Step | None, list[View | None]]:
    """Follows a view through a slice of one index along some of its axes."""
    indices: list[tuple[Hashable, int, int]] = []
    shape = equation.invars[0].aval.shape
    followed: View | None = view
    for axis, size in enumerate(equation.params["slice_sizes"]):
        start = equation.invars[1 + axis]
        if size == shape[axis] or followed is None:
            continue
        if isinstance(start, core.Literal):
            first = min(max(int(start.val), 0), shape[axis] - size)
            followed = views.take_run(followed, axis, first, size)
        elif size == 1:
            key = object()
            indices.append((key, 1 + axis, shape[axis]))
            followed = views.take_index(followed, axis, key)
        else:
            followed = None
    step = _NoteIndices(tuple(indices)) if followed and indices else None
    return step, [followed]


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Adds the covariances of a product's inputs to the totals."""

    parts: tuple[tuple[Hashable, products.Product, tuple[Hashable, ...]], ...]

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        weights = context.all_weights
        for source, product, moving in self.parts:
            given = [operands[i] for i in product.operands]
            place = tuple(context.indices[key] for key in moving)
            context.add(source, product.method(given, weights), place)
        return evaluate(equation, operands, context)


def _product(equation: Any, given: list[Trait], scope: Scope) -> Step | None:
    """Records the uses of parameters in a product whose result is used."""
    if not scope.followed:
        return None
    name = equation.primitive.name
    avals = [atom.aval for atom in equation.invars]
    operands = products.Operands(
        [aval.shape for aval in avals],
        [aval.dtype for aval in avals],
        [trait.positions for trait in given],
        equation.outvars[0].aval.shape,
    )
    parts = []
    for kernel, trait in enumerate(given):
        if not trait.view:
            continue
        try:
            product = products.find(name, equation.params, trait.view, kernel, operands)
            _check_input(given[product.operands[0]], product)
            product = products.gather_input(product, trait.view, scope.mesh)
            view = views.gather(trait.view, product.contracted, scope.mesh)
            arrangement = views.arrange(view, product.contracted, product.batch)
        except UnfitError as reason:
            scope.obstruct(trait.view, str(reason))
            continue
        moving = tuple(key for _, key in trait.view.moving)
        numbers = tuple(given[i].number for i in product.operands)
        source: Hashable = product.method, numbers, moving
        if source not in scope.sources:
            lead = [trait.view.shape[axis] for axis, _ in trait.view.moving]
            dtype = jnp.promote_types(avals[product.operands[0]].dtype, jnp.float32)
            along = given[product.operands[0]].positions
            one = bool(positions.known(along)) or set(scope.weights) <= {1}
            scope.sources[source] = Source(
                (*lead, *product.lead),
                product.length,
                dtype,
                one and weighting.followed(product.method.positions, scope.all_weights),
                tuple(scope.mesh),
            )
            parts.append((source, product, moving))
        scope.uses.append(Use(trait.view.param, source, arrangement))
    return _Measure(tuple(parts)) if parts else None


def _check_input(trait: Trait, product: products.Product) -> None:
    """Raises `UnfitError` for an operand that is not an input."""
    if trait.view:
        raise UnfitError("it is multiplied with a parameter")
    method = product.method
    if isinstance(method, Dot) and method.contracted == (trait.lookup,):
        raise UnfitError("it is indexed by a product with one-hot vectors")
