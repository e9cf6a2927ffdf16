"""Into the bodies of loops and branches, and out of them with what was found there."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from mofo_jax._covariances import pieces, views
from mofo_jax._covariances.evaluation import Context, Plan, Source, Step
from mofo_jax._covariances.products import Sums
from mofo_jax._covariances.scope import Scope, Trait, Use
from mofo_jax._covariances.views import Layout, UnfitError

Analyse = Callable[[Any, Sequence[Trait], Scope], tuple[Plan, list[Trait]]]
Analysed = tuple[Step | None, list[Trait]]


@dataclasses.dataclass(frozen=True)
class Exit:
    """A sum of the body's that is added to one outside.

    Attributes:
      inner: Its name in the body.
      layout: Where it lies in the covariance of the body's argument.
      outer: Its name outside.
      moving: The indices at which it is added there.
      stacked: Whether the body's argument is one of many along a leading axis.
    """

    inner: Hashable
    layout: Layout
    outer: Hashable
    moving: tuple[Hashable, ...]
    stacked: bool = False

    def placed(self, sums: Sums) -> Sums:
        """Returns the covariance of the body's argument, and its count."""
        matrix, count = sums
        return views.place(self.layout, matrix), views.place_count(self.layout, count)

    def leave(self, sums: Sums, context: Context) -> None:
        """Adds what `placed` has returned to the total outside."""
        place = tuple(context.indices[key] for key in self.moving)
        context.add(self.outer, sums, place)


def enter(
    trait: Trait, number: Hashable, shape: Sequence[int], view: int | None
) -> Trait:
    """Returns the trait of a body's argument.

    Args:
      trait: Of what it is given, along the axes that the argument has.
      number: The argument's.
      shape: The argument's.
      view: Its number among the body's parameters, if it is one.
    """
    parameter = None if view is None else views.whole_view(view, shape)
    return trait._replace(number=number, view=parameter)


def _leave(
    use: Use, operand: Trait, inner: Scope, outer: Scope, key: Hashable, stacked: bool
) -> Exit | None:
    """Notes a use in a body as one of what the body's argument is a view of."""
    view = operand.view
    assert view is not None
    arrangement = use.arrangement
    contracted, batch = (
        tuple(axis + stacked for axis in axes)
        for axes in (arrangement.axes, arrangement.batch_axes)
    )
    batch = (0, *batch) if stacked else batch
    try:
        found = views.arrange(view, contracted, batch)
    except UnfitError as reason:
        outer.obstruct(view, str(reason))
        return None
    moving = tuple(index for _, index in view.moving)
    layout = arrangement.layout
    source: Hashable = key, use.source, layout, stacked, moving
    outer.uses.append(Use(view.param, source, found))
    if source in outer.sources:
        return None
    lead = [view.shape[axis] for axis, _ in view.moving]
    lead += [pieces.length(view.axes[axis]) for axis in batch]
    length = views.length(layout)
    dtype = inner.sources[use.source].dtype
    outer.sources[source] = Source(tuple(lead), length, dtype)
    return Exit(use.source, layout, source, moving, stacked)


def find_exits(
    inner: Scope,
    outer: Scope,
    operands: Sequence[Trait],
    body: Hashable,
    first_stacked: int,
) -> list[Exit]:
    """Notes what a body does with its arguments as done with what it is given.

    Args:
      inner: The body's scope.
      outer: The scope that the body is run in.
      operands: What it is given.
      body: Names the body in the outer scope.
      first_stacked: The first argument that is one of many along the leading axis of
        what is given.
    """
    for number, reasons in inner.obstacles.items():
        view = operands[number].view
        assert view is not None
        for reason in reasons:
            outer.obstruct(view, reason)
    found = [
        _leave(use, operands[use.param], inner, outer, body, use.param >= first_stacked)
        for use in inner.uses
    ]
    return [way for way in found if way is not None]
