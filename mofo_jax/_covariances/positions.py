"""How the axes of an array correspond to those of the weights of positions.

The correspondence has the form of `pieces`, with the weights as the source. Two axes
may correspond to the same axis of the weights, such as those of the queries and the
keys of an attention.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mofo_jax._covariances import pieces, relabelling
from mofo_jax._covariances.pieces import Axes, Piece

Rule = Callable[[list[Axes], Mapping[str, Any], list[Any], Any], Axes]


def of_input(shape: Sequence[int], weights: Sequence[int]) -> Axes:
    """Returns the axes of an array of a batch, whose first may be those of the weights.

    Args:
      shape: The shape of the array.
      weights: The shape of the weights.
    """
    own = len(weights)
    if tuple(shape[:own]) != tuple(weights):
        return pieces.unrelated(shape)
    return pieces.whole(weights) + pieces.unrelated(shape[own:])


def join(first: Axes, second: Axes) -> Axes:
    """Joins the axes of two arrays of one shape.

    If both correspond to axes of weights, the lower number has precedence, so that the
    weights of the batch do over those of moved positions; then the first array has.
    """

    def rank(axis: tuple[Piece, ...]) -> float:
        return min((p.axis for p in axis if p.axis is not None), default=math.inf)

    pairs = zip(first, second, strict=True)
    return tuple(one if rank(one) <= rank(other) else other for one, other in pairs)


def related(axes: Sequence[tuple[Piece, ...]]) -> bool:
    """Returns whether any axis corresponds to one of the weights."""
    return any(_related(axis) for axis in axes)


def _related(axis: tuple[Piece, ...]) -> bool:
    return any(piece.axis is not None for piece in axis)


def propagate(
    name: str, params: Mapping[str, Any], given: list[Axes], avals: list[Any], outs: Any
) -> list[Axes]:
    """Returns the axes of the results of a primitive.

    Args:
      name: The primitive's name.
      params: The primitive's parameters.
      given: The axes of the operands.
      avals: The abstract values of the operands.
      outs: The abstract values of the results.
    """
    unrelated = [pieces.unrelated(out.shape) for out in outs]
    if not any(map(related, given)):
        return unrelated
    if name in relabelling.UNCHANGED and len(given) == len(outs):
        return given
    if name in relabelling.RULES:
        found = relabelling.relabel(name, given[0], params, outs)
        return [u if f is None else f for f, u in zip(found, unrelated, strict=True)]
    if name in _RULES:
        return [_RULES[name](given, params, avals, out) for out in outs]
    if name in _MOVING:
        return unrelated
    # Another primitive is assumed to compute each coordinate of a result from those of
    # the operands at the same place, if their shapes broadcast to that of the result.
    results = []
    for out, axes in zip(outs, unrelated, strict=True):
        for own, aval in zip(given, avals, strict=True):
            if pieces.expands(aval.shape, out.shape):
                axes = join(axes, pieces.expand(own, out.shape))
        results.append(axes)
    return results


def _dot(given: list[Axes], params: Mapping[str, Any], avals: Any, out: Any) -> Axes:
    (contracted, batch) = params["dimension_numbers"]
    both = join(
        tuple(given[0][axis] for axis in batch[0]),
        tuple(given[1][axis] for axis in batch[1]),
    )
    free = [
        pieces.without(axes, (*contracted[side], *batch[side]))
        for side, axes in enumerate(given)
    ]
    return (*both, *free[0], *free[1])


def _ragged_dot(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    numbers = params["ragged_dot_dimension_numbers"]
    axes = pieces.unrelated(out.shape)
    if len(out.shape) == 2 and tuple(numbers.lhs_ragged_dimensions) == (0,):
        return (given[0][0], axes[1])
    return axes


def of_convolution(
    params: Mapping[str, Any], axes: Axes, shape: Sequence[int], out: Sequence[int]
) -> Axes:
    """Returns the axes of the result of a convolution."""
    numbers = params["dimension_numbers"]
    result = list(pieces.unrelated(out))
    result[numbers.out_spec[0]] = axes[numbers.lhs_spec[0]]
    spatial = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    for before, after in spatial:
        if shape[before] == out[after]:
            result[after] = axes[before]
    return tuple(result)


def _convolution(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    return of_convolution(params, given[0], avals[0].shape, out.shape)


def _gather(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    numbers = params["dimension_numbers"]
    sizes = params["slice_sizes"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    inside = [axis for axis in range(len(sizes)) if axis not in dropped]
    axes: list[Any] = list(pieces.unrelated(out.shape))
    for before, after in zip(inside, numbers.offset_dims, strict=True):
        if sizes[before] == avals[0].shape[before]:
            axes[after] = given[0][before]
    others = [i for i in range(len(axes)) if i not in numbers.offset_dims]
    moved = related([given[0][axis] for axis in numbers.start_index_map])
    for i, (before, after) in enumerate(zip(given[1][:-1], others, strict=True)):
        # Positions of the operand are in the order of the indices' values.
        if not moved or i in numbers.start_indices_batching_dims:
            axes[after] = before
    return tuple(axes)


def _scatter(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    moved = params["dimension_numbers"].scatter_dims_to_operand_dims
    return pieces.lose(given[0], moved)


def _pad(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    lost = pieces.unrelated(out.shape)
    rows = zip(given[0], params["padding_config"], lost, strict=True)
    return tuple(a if tuple(edge) == (0, 0, 0) else b for a, edge, b in rows)


def _reduce(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    return pieces.without(given[0], params["axes"])


def _concatenate(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    where = params["dimension"]
    shape = [1 if i == where else size for i, size in enumerate(out.shape)]
    axes = pieces.unrelated(shape)
    for own in given:
        axes = join(axes, tuple(() if i == where else a for i, a in enumerate(own)))
    lost = pieces.unrelated(out.shape)
    return tuple(lost[i] if i == where else axis for i, axis in enumerate(axes))


def _same_lengths(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    lost = pieces.unrelated(out.shape)
    same = zip(given[0], avals[0].shape, out.shape, lost, strict=True)
    return tuple(a if before == after else b for a, before, after, b in same)


def _sort(given: list[Axes], params: Any, avals: Any, out: Any) -> Axes:
    axes = pieces.unrelated(out.shape)
    for own in given:
        axes = join(axes, own)
    return pieces.lose(axes, [params["dimension"]])


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("argmax", "argmin", "reduce_and", "reduce_max"), _reduce),
    **dict.fromkeys(("reduce_min", "reduce_or", "reduce_prod", "reduce_sum"), _reduce),
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _same_lengths,
    "gather": _gather,
    "pad": _pad,
    "ragged_dot_general": _ragged_dot,
    "sort": _sort,
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add"), _scatter),
    **dict.fromkeys(("scatter_max", "scatter_min", "scatter_mul"), _scatter),
}
# Primitives that move coordinates along axes or between devices.
_MOVING = frozenset(
    {
        "all_to_all",
        "fft",
        "pgather",
        "ppermute",
        "pshuffle",
        "ragged_all_to_all",
        "reduce_scatter",
        "top_k",
    }
)
