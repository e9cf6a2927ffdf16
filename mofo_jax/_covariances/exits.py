"""Arguments of the bodies of loops and branches, and the sums that leave them."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from mofo_jax._covariances import layouts, pieces, views
from mofo_jax._covariances.evaluation import Context, Plan, Step
from mofo_jax._covariances.methods import Sums
from mofo_jax._covariances.scope import Scope, Trait, Use
from mofo_jax._covariances.views import UnfitError

Analyse = Callable[[Any, Sequence[Trait], Scope], tuple[Plan, list[Trait]]]
Analysed = tuple[Step | None, list[Trait]]


@dataclasses.dataclass(frozen=True)
class Exit:
    """A sum of a body that is added to a sum outside.

    Attributes:
      use: The use of an argument in the body.
      outer: The name of the sum outside.
      moving: The indices at which it is added.
      stacked: Whether the argument is one of many along a leading axis, which have
        separate sums.
    """

    use: Use
    outer: Hashable
    moving: tuple[Hashable, ...]
    stacked: bool

    @property
    def inner(self) -> Hashable:
        """The name of the sum in the body."""
        return self.use.source

    def placed(self, sums: Sums) -> Sums:
        """Returns the covariance of the body's argument, and its count."""
        matrix, count = sums
        layout = self.use.arrangement.layout
        return layouts.place(layout, matrix), layouts.place_count(layout, count)

    def leave(self, sums: Sums, context: Context) -> None:
        """Adds the result of `placed` to the sum outside."""
        place = tuple(context.indices[key] for key in self.moving)
        context.add(self.outer, sums, place)


def enter(
    trait: Trait,
    number: Hashable,
    shape: Sequence[int],
    param: int | None,
    *,
    iterated: bool = False,
) -> Trait:
    """Returns the trait of a body's argument.

    Args:
      trait: The trait of the operand, with the positions of the argument.
      number: The argument's number.
      shape: The argument's shape.
      param: Its number among the body's parameters, or None if it is not one.
      iterated: Whether the operand has a leading axis that the argument does not have.
    """
    view = None
    if param is not None:
        assert trait.view is not None
        shards = [views.sharded(trait.view, iterated + i) for i in range(len(shape))]
        view = views.whole_view(param, shape, tuple(shards))
    iota, lookup = (
        None if axis is None or axis < iterated else axis - iterated
        for axis in (trait.iota, trait.lookup)
    )
    return trait._replace(
        number=number,
        view=view,
        uniform=trait.uniform or math.prod(shape) == 1,
        iota=iota,
        lookup=lookup,
    )


def enter_all(
    given: Sequence[Trait], atoms: Sequence[Any], inner: Scope
) -> list[Trait]:
    """Returns the arguments of a body that all operands enter unchanged.

    Args:
      given: The operands' traits.
      atoms: The operands.
      inner: The scope of the body.
    """
    return [
        enter(
            trait,
            inner.number(("given", trait.number)),
            atom.aval.shape,
            i if trait.view else None,
        )
        for i, (trait, atom) in enumerate(zip(given, atoms, strict=True))
    ]


def _leave(
    use: Use, operand: Trait, inner: Scope, outer: Scope, key: Hashable, stacked: bool
) -> Exit | None:
    """Records a use in a body as a use of the operand that the argument views."""
    view = operand.view
    assert view is not None
    arrangement = use.arrangement
    contracted, batch = (
        tuple(axis + stacked for axis in axes)
        for axes in (arrangement.axes, arrangement.batch_axes)
    )
    layout = arrangement.layout
    # Within the body, their shards have been gathered.
    grown = [
        axis
        for axis, size in zip(batch, layout.sizes, strict=False)
        if size != pieces.length(view.axes[axis])
    ]
    own = {digit.axis for digit in view.axes[0]} if stacked else set()
    free = [i for i in range(1, len(view.axes)) if i not in (*contracted, *batch)]
    if own & {digit.axis for i in free for digit in view.axes[i]} - {None}:
        # The iterations have parts of an axis that the product does not contract.
        stacked = False
    batch = (0, *batch) if stacked else batch
    try:
        view = views.gather(view, (*contracted, *grown), outer.mesh)
        found = views.arrange(view, contracted, batch)
    except UnfitError as reason:
        outer.obstruct(view, str(reason))
        return None
    moving = tuple(index for _, index in view.moving)
    source: Hashable = key, use.source, layout, stacked, moving
    outer.uses.append(Use(view.param, source, found))
    if source in outer.sources:
        return None
    lead = [view.shape[axis] for axis, _ in view.moving]
    lead += [pieces.length(view.axes[axis]) for axis in batch]
    length = layouts.length(layout)
    outer.sources[source] = inner.sources[use.source]._replace(
        lead=tuple(lead), length=length, mesh=tuple(outer.mesh)
    )
    return Exit(use, source, moving, stacked)


def find_exits(
    inner: Scope,
    outer: Scope,
    operands: Sequence[Trait],
    results: Iterable[tuple[Trait, Any]],
    body: Hashable,
    first_stacked: int,
) -> list[Exit]:
    """Records the uses of a body's arguments as uses of the operands.

    Args:
      inner: The body's scope.
      outer: The scope in which the body runs.
      operands: The traits of the operands.
      results: The traits of the results that, if they are views, are not followed
        outside, each with its variable.
      body: The body's name in the outer scope.
      first_stacked: The first argument that is one of many along the leading axis of
        its operand.
    """
    for number, reasons in inner.obstacles.items():
        view = operands[number].view
        assert view is not None
        for reason in reasons:
            outer.obstruct(view, reason)
    for result, var in results:
        if result.view and var in outer.used:
            view = operands[result.view.param].view
            assert view is not None
            outer.obstruct(view, "it is a result of a loop, a branch or shard_map")
    found = [
        _leave(use, operands[use.param], inner, outer, body, use.param >= first_stacked)
        for use in inner.uses
    ]
    return [way for way in found if way is not None]
