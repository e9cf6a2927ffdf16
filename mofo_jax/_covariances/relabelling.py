"""The effect of primitives that rearrange coordinates on the axes of an array."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mofo_jax._covariances import pieces
from mofo_jax._covariances.pieces import Axes

# One entry per result, which is None if its axes are lost.
Results = list[Axes | None]
Rule = Callable[[Axes, Mapping[str, Any], Sequence[Any]], Results]

# Primitives whose results have the coordinates of the corresponding operands.
UNCHANGED = frozenset(
    {
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "layout_constraint",
        "name",
        "optimization_barrier",
        "pbroadcast",
        "pcast",
        "pvary",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    }
)


def relabel(name: str, axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    """Returns the axes of the results of a primitive.

    Args:
      name: The name of a primitive in `RULES`.
      axes: The axes of its first operand.
      params: The primitive's parameters.
      outs: The abstract values of the results.
    """
    return RULES[name](axes, params, outs)


def _reshape(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    order = params.get("dimensions")
    axes = axes if order is None else pieces.transpose(axes, order)
    return [pieces.reshape(axes, outs[0].shape)]


def _transpose(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    return [pieces.transpose(axes, params["permutation"])]


def _squeeze(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    dimensions = [axis % len(axes) for axis in params["dimensions"]]
    return [pieces.without(axes, dimensions)]


def _broadcast(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    dimensions = params["broadcast_dimensions"]
    return [pieces.broadcast(axes, outs[0].shape, dimensions)]


def _slice(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    steps = params["strides"] or (1,) * len(axes)
    runs = zip(axes, params["start_indices"], outs[0].shape, steps, strict=True)
    return [_all_known([pieces.take_run(*run) for run in runs])]


def _reverse(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    turned = [
        pieces.take_run(axis, pieces.length(axis) - 1, pieces.length(axis), -1)
        if i in params["dimensions"]
        else axis
        for i, axis in enumerate(axes)
    ]
    return [_all_known(turned)]


def _split(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    where, start, results = params["axis"], 0, []
    for size in map(int, params["sizes"]):
        run = pieces.take_run(axes[where], start, size)
        results.append(_all_known([*axes[:where], run, *axes[where + 1 :]]))
        start += size
    return results


def _unstack(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    return [pieces.without(axes, [params["axis"]]) for _ in outs]


def _tile(axes: Axes, params: Mapping[str, Any], outs: Any) -> Results:
    times = zip(axes, params["reps"], strict=True)
    return [tuple(pieces.join((pieces.Piece(None, n), *axis)) for axis, n in times)]


def _all_known(axes: Sequence[tuple[pieces.Piece, ...] | None]) -> Axes | None:
    known = tuple(axis for axis in axes if axis is not None)
    return known if len(known) == len(axes) else None


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
