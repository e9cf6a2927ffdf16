"""The effect of primitives on how axes correspond to those of the weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mofo_jax._covariances import pieces, relabelling
from mofo_jax._covariances.pieces import Axes, Piece
from mofo_jax._covariances.positions import (
    join,
    lose,
    lost,
    related,
    reordered,
)

# The rule of a primitive. Its arguments are the axes of the operands, the parameters,
# the abstract values of the operands and of the result, and the number of axes of the
# batch's weights.
Rule = Callable[[list[Axes], Mapping[str, Any], list[Any], Any, int], Axes]


def propagate(
    name: str,
    params: Mapping[str, Any],
    given: list[Axes],
    avals: list[Any],
    outs: Any,
    rank: int,
) -> list[Axes]:
    """Returns the axes of the results of a primitive.

    Args:
      name: The primitive's name.
      params: The primitive's parameters.
      given: The axes of the operands.
      avals: The abstract values of the operands.
      outs: The abstract values of the results.
      rank: The number of axes of the batch's weights.
    """
    if not any(map(related, given)):
        return [pieces.unrelated(out.shape) for out in outs]
    unknown = [tuple(map(lost, out.shape)) for out in outs]
    if name in relabelling.UNCHANGED and len(given) == len(outs):
        return given
    if name in relabelling.RULES:
        found = relabelling.relabel(name, given[0], params, outs)
        return [u if f is None else f for f, u in zip(found, unknown, strict=True)]
    if name in _RULES:
        return [_RULES[name](given, params, avals, out, rank) for out in outs]
    if name in _MOVING:
        return unknown
    # Another primitive is assumed to compute each coordinate of a result from those of
    # the operands at the same place, if their shapes broadcast to that of the result.
    results = []
    for out, none in zip(outs, unknown, strict=True):
        fitting = [
            pieces.expand(own, out.shape)
            for own, aval in zip(given, avals, strict=True)
            if pieces.expands(aval.shape, out.shape)
        ]
        results.append(_join_all(fitting, rank) if any(map(related, fitting)) else none)
    return results


def _join_all(given: Sequence[Axes], rank: int) -> Axes:
    return functools.reduce(lambda one, other: join(one, other, rank), given)


def _dot(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    (contracted, batch) = params["dimension_numbers"]
    free = [
        pieces.without(axes, (*contracted[side], *batch[side]))
        for side, axes in enumerate(given)
    ]
    none = [pieces.unrelated([pieces.length(a) for a in axes]) for axes in free]
    first, second = (
        tuple(axes[axis] for axis in batch[side]) for side, axes in enumerate(given)
    )
    return join((*first, *free[0], *none[1]), (*second, *none[0], *free[1]), rank)


def _ragged_dot(
    given: list[Axes], params: Any, avals: Any, out: Any, rank: int
) -> Axes:
    numbers = params["ragged_dot_dimension_numbers"]
    if len(out.shape) == 2 and tuple(numbers.lhs_ragged_dimensions) == (0,):
        return (given[0][0], *pieces.unrelated(out.shape[1:]))
    return tuple(map(lost, out.shape))


def of_convolution(
    params: Mapping[str, Any], axes: Axes, shape: Sequence[int], out: Sequence[int]
) -> Axes:
    """Returns the axes of the result of a convolution."""
    numbers = params["dimension_numbers"]
    result = list(pieces.unrelated(out))
    result[numbers.out_spec[0]] = axes[numbers.lhs_spec[0]]
    before, after = numbers.lhs_spec[1], numbers.out_spec[1]
    groups = params["feature_group_count"]
    if groups > 1 and related([axes[before]]):
        # `vmap` over inputs and kernels makes each row a group of features.
        split = pieces.reshape((axes[before],), (groups, shape[before] // groups))
        features = pieces.unrelated([out[after] // groups])[0]
        result[after] = (
            lost(out[after]) if split is None else pieces.join((*split[0], *features))
        )
    spatial = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    for before, after in spatial:
        kept = shape[before] == out[after]
        axis = axes[before]
        result[after] = axis if kept else reordered(axis, out[after])
    return tuple(result)


def _convolution(
    given: list[Axes], params: Any, avals: Any, out: Any, rank: int
) -> Axes:
    return of_convolution(params, given[0], avals[0].shape, out.shape)


def _gather(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    numbers = params["dimension_numbers"]
    sizes = params["slice_sizes"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    inside = [axis for axis in range(len(sizes)) if axis not in dropped]
    axes: list[Any] = list(pieces.unrelated(out.shape))
    for before, after in zip(inside, numbers.offset_dims, strict=True):
        kept = sizes[before] == avals[0].shape[before]
        axis = given[0][before]
        axes[after] = axis if kept else reordered(axis, out.shape[after])
    others = [i for i in range(len(axes)) if i not in numbers.offset_dims]
    moved = related([given[0][axis] for axis in numbers.start_index_map])
    batching = dict(
        zip(
            numbers.start_indices_batching_dims,
            numbers.operand_batching_dims,
            strict=True,
        )
    )
    for i, (before, after) in enumerate(zip(given[1][:-1], others, strict=True)):
        # Positions of the operand are in the order of the indices' values.
        if i in batching:
            (axes[after],) = join((given[0][batching[i]],), (before,), rank)
        else:
            axes[after] = lost(out.shape[after]) if moved else before
    return tuple(axes)


def _scatter(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    numbers, shape = params["dimension_numbers"], out.shape
    # Where the coordinates along the other axes of the update are is in the indices.
    inside = numbers.update_window_dims
    outside = related(pieces.without(given[2], inside))
    update = [lost(n) if outside else pieces.unrelated([n])[0] for n in shape]
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [axis for axis in range(len(shape)) if axis not in dropped]
    for axis, own in zip(windows, inside, strict=True):
        update[axis] = given[2][own]
    indexed = numbers.scatter_dims_to_operand_dims
    return _overwrite(given[0], update, indexed, rank)


def _update_slice(
    given: list[Axes], params: Any, avals: Any, out: Any, rank: int
) -> Axes:
    return _overwrite(given[0], given[1], (), rank)


def _overwrite(
    axes: Axes, update: Sequence[tuple[Piece, ...]], indexed: Sequence[int], rank: int
) -> Axes:
    """Returns the axes of an array of which a part is overwritten.

    Args:
      axes: The axes of the array.
      update: The axes of what overwrites it, in the same order. Where they are shorter,
        the place of the part is not known.
      indexed: The numbers of other axes along which it is not known.
      rank: The number of axes of the batch's weights.
    """
    shape, own = ([pieces.length(axis) for axis in one] for one in (axes, update))
    moved = [i in indexed or own[i] != size for i, size in enumerate(shape)]
    if related(update):
        # An axis of length 1 does not say whether it is a position.
        update = [lost(shape[i]) if own[i] == 1 else a for i, a in enumerate(update)]
    before, after = (_resized(tuple(one), shape, moved) for one in (axes, update))
    return join(before, after, rank)


def _pad(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    edges = [any(edge) for edge in params["padding_config"]]
    # An axis of length 1 does not say whether it is a position.
    single = [edge and n == 1 for edge, n in zip(edges, avals[0].shape, strict=True)]
    return tuple(
        lost(out.shape[i]) if single[i] else axis
        for i, axis in enumerate(_resized(given[0], out.shape, edges))
    )


def _resized(axes: Axes, shape: Sequence[int], moved: Sequence[bool]) -> Axes:
    """Returns axes of which some have other positions, and perhaps another length."""
    return tuple(
        reordered(axis, shape[i]) if moved[i] else axis for i, axis in enumerate(axes)
    )


def _reduce(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    return pieces.without(given[0], params["axes"])


def _concatenate(
    given: list[Axes], params: Any, avals: Any, out: Any, rank: int
) -> Axes:
    where = params["dimension"]
    parts = [digit for axes in given for digit in axes[where]]
    axes = _join_all([pieces.without(axes, [where]) for axes in given], rank)
    return (*axes[:where], reordered(tuple(parts), out.shape[where]), *axes[where:])


def _same_lengths(
    given: list[Axes], params: Any, avals: Any, out: Any, rank: int
) -> Axes:
    lengths = zip(avals[0].shape, out.shape, strict=True)
    return _resized(given[0], out.shape, [one != other for one, other in lengths])


def _stack(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    where, axes = params["axis"], _join_all(given, rank)
    return (*axes[:where], *pieces.unrelated([len(given)]), *axes[where:])


def _sort(given: list[Axes], params: Any, avals: Any, out: Any, rank: int) -> Axes:
    return lose(_join_all(given, rank), [params["dimension"]])


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("argmax", "argmin", "reduce_and", "reduce_max"), _reduce),
    **dict.fromkeys(("reduce_min", "reduce_or", "reduce_prod", "reduce_sum"), _reduce),
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _same_lengths,
    "dynamic_update_slice": _update_slice,
    "gather": _gather,
    "pad": _pad,
    "ragged_dot_general": _ragged_dot,
    "sort": _sort,
    "stack": _stack,
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
