"""Arrays that relabel a parameter's coordinates, and their axes in products."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mofo_jax._covariances import layouts, pieces, relabelling
from mofo_jax._covariances.layouts import Layout
from mofo_jax._covariances.pieces import Axes, Piece


class UnfitError(Exception):
    """The reason why an input's covariance is not that of a parameter."""


class View(NamedTuple):
    """An array whose coordinates are those of a parameter, relabelled.

    Attributes:
      param: The parameter's number.
      shape: The parameter's shape.
      axes: The origin of the array's axes (see `pieces`), without offsets.
      fixed: The offsets of the indices along each of the parameter's axes.
      moving: Axes of the parameter at a single index that is known only when the
        program runs, each with a key of that index.
      shards: Within `shard_map`, the mesh axes over which each axis is sharded.
    """

    param: int
    shape: tuple[int, ...]
    axes: Axes
    fixed: tuple[int, ...]
    moving: tuple[tuple[int, Any], ...] = ()
    shards: tuple[tuple[str, ...], ...] = ()


def whole_view(
    param: int, shape: Sequence[int], shards: tuple[tuple[str, ...], ...] = ()
) -> View:
    """Returns the view of the whole parameter."""
    shards = shards or ((),) * len(shape)
    axes = tuple(
        # One of several indices, since those of other devices may be gathered.
        (Piece(i, 1),) if shards[i] and shape[i] == 1 else axis
        for i, axis in enumerate(pieces.whole(shape))
    )
    return View(param, tuple(shape), axes, (0,) * len(shape), (), shards)


def sharded(view: View, axis: int) -> tuple[str, ...]:
    """Returns the mesh axes over which an axis of the array is sharded."""
    sources = _sources(view.axes[axis])
    return tuple(name for source in sources for name in view.shards[source])


def gather(view: View, axes: Sequence[int], sizes: Mapping[str, int]) -> View:
    """Returns the view of the array with the shards of some axes concatenated.

    Args:
      view: The view of the array.
      axes: The array's axes to gather.
      sizes: The sizes of the mesh axes.

    Raises:
      UnfitError: If only a part of an axis of the parameter would be gathered.
    """
    for axis in axes:
        names = sharded(view, axis)
        if not names:
            continue
        if len(view.axes[axis]) != 1:
            raise UnfitError("its product contracts a part of an axis on each device")
        ((source, size, *_),) = view.axes[axis]
        if source is None or size != view.shape[source]:
            raise UnfitError("its product contracts a part of an axis on each device")
        size *= math.prod(sizes[name] for name in names)
        view = view._replace(
            shape=_with(view.shape, source, size),
            axes=_with(view.axes, axis, (Piece(source, size),)),
            shards=_with(view.shards, source, ()),
        )
    return view


def _with(items: tuple[Any, ...], place: int, item: Any) -> tuple[Any, ...]:
    return (*items[:place], item, *items[place + 1 :])


def relabel(
    view: View, name: str, params: Mapping[str, Any], outs: Sequence[Any]
) -> list[View | None]:
    """Returns the views of the results of a primitive of `relabelling.RULES`."""
    if name == "unstack":
        where = params["axis"]
        runs = [take_run(view, where, i, 1) for i in range(len(outs))]
        return [
            run and run._replace(axes=pieces.without(run.axes, [where])) for run in runs
        ]
    results = relabelling.relabel(name, view.axes, params, outs)
    return [None if axes is None else _without_offsets(view, axes) for axes in results]


def expand(view: View, shape: Sequence[int]) -> View:
    """Returns the view of the array with axes of length 1 repeated."""
    return view._replace(axes=pieces.expand(view.axes, shape))


def take_run(view: View, axis: int, start: int, size: int) -> View | None:
    """Returns the view of a run of indices along an axis of the array."""
    run = pieces.take_run(view.axes[axis], start, size)
    if run is None:
        return None
    return _without_offsets(view, _with(view.axes, axis, run))


def take_index(view: View, axis: int, index: Any) -> View | None:
    """Returns the view of a single index along an axis of the array.

    The axis remains, with a length of 1.

    Args:
      view: The view of the array.
      axis: An axis of the array.
      index: The key of an index that is known only when the program runs.
    """
    if len(view.axes[axis]) != 1:
        return view if not view.axes[axis] else None
    ((source, size, stride, *_),) = view.axes[axis]
    axes = _with(view.axes, axis, ())
    if source is None:
        return view._replace(axes=axes)
    if size != view.shape[source] or stride != 1:
        return None
    return view._replace(axes=axes, moving=(*view.moving, (source, index)))


def _without_offsets(view: View, axes: Axes) -> View:
    fixed = list(view.fixed)
    for piece in (piece for axis in axes for piece in axis):
        if piece.axis is not None:
            fixed[piece.axis] += piece.offset
    bare = tuple(
        tuple(
            piece._replace(offset=0, highest=True)
            for piece in axis
            if piece.size > 1 or (piece.axis is not None and view.shards[piece.axis])
        )
        for axis in axes
    )
    return view._replace(axes=bare, fixed=tuple(fixed))


class Arrangement(NamedTuple):
    """The axes of a parameter that a covariance belongs to.

    Attributes:
      axes: The contracted axes.
      batch_axes: The axes whose indices have separate covariances.
      chosen: Those of the batch axes of which the view has a single, constant index.
      layout: The position of the product's covariance in the parameter's.
    """

    axes: tuple[int, ...]
    batch_axes: tuple[int, ...]
    chosen: tuple[int, ...]
    layout: Layout

    def without(self, axis: int) -> "Arrangement":
        """Returns the arrangement in which a chosen axis is not a batch axis."""
        place = self.batch_axes.index(axis)
        batch_axes, chosen = (
            tuple(a for a in axes if a != axis)
            for axes in (self.batch_axes, self.chosen)
        )
        layout = layouts.without(self.layout, place)
        return Arrangement(self.axes, batch_axes, chosen, layout)


def arrange(view: View, contracted: Sequence[int], batch: Sequence[int]) -> Arrangement:
    """Finds the position of the covariance of an input that a view is multiplied with.

    Args:
      view: The view that is multiplied.
      contracted: Its contracted axes, in the order of the covariance's last two axes.
      batch: Its batch axes, in the order of the covariance's leading axes after those
        of `view.moving`.

    Raises:
      UnfitError: If the covariance does not belong to axes of the parameter.
    """
    inputs = [piece for axis in contracted for piece in view.axes[axis]]
    own = [piece for axis in batch for piece in view.axes[axis]]
    lead = [Piece(axis, view.shape[axis]) for axis, _ in view.moving] + own
    used = {*contracted, *batch}
    free = [p for i, axis in enumerate(view.axes) if i not in used for p in axis]
    axes = _sources(inputs)
    if not axes:
        raise UnfitError("its product contracts an axis of length 1")
    seen = {*axes, *_sources(lead), *_sources(free)}
    several = {i for i, n in enumerate(view.shape) if n > 1 or view.shards[i]}
    chosen = tuple(sorted(several - seen))
    batch_axes = sorted({*_sources(lead), *chosen})
    for axis in axes:
        if axis in {*_sources(lead), *_sources(free)}:
            raise UnfitError(f"its product contracts only a part of axis {axis}")
    order = [*batch_axes, *axes]
    free = [piece for piece in free if piece.axis in batch_axes]
    for axis in order:
        _check_run(axis, [p for p in (*inputs, *lead, *free) if p.axis == axis])
    layout = Layout(
        lead=_renumbered(lead, order),
        inputs=_renumbered(inputs, order),
        free=_renumbered(free, order),
        starts=tuple(view.fixed[axis] for axis in order),
        sizes=tuple(view.shape[axis] for axis in order),
        batch=len(batch_axes),
    )
    return Arrangement(tuple(axes), tuple(batch_axes), chosen, layout)


def _sources(digits: Iterable[Piece]) -> list[int]:
    return sorted({piece.axis for piece in digits if piece.axis is not None})


def _check_run(axis: int, digits: list[Piece]) -> None:
    """Raises `UnfitError` unless digits form a run of adjacent indices."""
    stride = 1
    for piece in sorted(digits, key=lambda piece: piece.stride):
        if piece.stride != stride:
            raise UnfitError(f"indices of axis {axis} are skipped or reversed")
        stride *= piece.size


def _renumbered(digits: Iterable[Piece], order: list[int]) -> tuple[Piece, ...]:
    return tuple(
        piece if piece.axis is None else piece._replace(axis=order.index(piece.axis))
        for piece in digits
    )
