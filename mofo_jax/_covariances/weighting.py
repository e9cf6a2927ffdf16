"""The weights of an array's coordinates, from those of the positions."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from mofo_jax._covariances import pieces
from mofo_jax._covariances.pieces import Axes, Piece


def expand(weights: Sequence[jax.Array], axes: Axes) -> jax.Array:
    """Returns the weights of the coordinates of an array.

    Args:
      weights: The weights of positions, and those after each move of positions. The
        axes of all are numbered in this order.
      axes: The axes of the array. Along axes of the weights that none of them
        corresponds to, the largest weight is taken.

    Returns:
      An array with as many axes as `axes`, which broadcasts to the array's shape.
    """
    number, own = _latest(axes, [one.shape for one in weights])
    return _expand(weights[number], own)


def _latest(axes: Axes, shapes: Sequence[Sequence[int]]) -> tuple[int, Axes]:
    """Returns the number of the weights to use, and the axes relative to these alone.

    They are the last ones of which the array has every axis, or else the first.
    """
    for number in range(len(shapes) - 1, 0, -1):
        first = sum(map(len, shapes[:number]))
        own = _relative(axes, first, len(shapes[number]))
        known = [_indices(own, axis) for axis in range(len(shapes[number]))]
        missing = [n > 1 and not k for n, k in zip(shapes[number], known, strict=True)]
        if any(known) and not any(missing):
            return number, own
    return 0, _relative(axes, 0, len(shapes[0]))


def _relative(axes: Axes, first: int, count: int) -> Axes:
    def one(digit: Piece) -> Piece:
        if digit.axis is None or not 0 <= digit.axis - first < count:
            return digit._replace(axis=None)
        return digit._replace(axis=digit.axis - first)

    return tuple(tuple(map(one, digits)) for digits in axes)


def _expand(weights: jax.Array, axes: Axes) -> jax.Array:
    """Returns the product of the weights of all positions of an index.

    There are two along one axis for pairs of positions, such as an attention's queries
    and keys.
    """
    indices = [_indices(axes, axis) for axis in range(weights.ndim)]
    expanded = []
    for number in range(max([1, *map(len, indices)])):
        # An axis of which each index has only one, such as the rows', has it in all.
        digits = [own[min(number, len(own) - 1)] if own else [] for own in indices]
        expanded.append(_expand_one(weights, axes, digits))
    return functools.reduce(jnp.multiply, expanded)


def _expand_one(
    weights: jax.Array, axes: Axes, indices: Sequence[list[tuple[int, Piece]]]
) -> jax.Array:
    places: list[tuple[int, Piece]] = []
    for axis, own in enumerate(indices):
        if own:
            size = pieces.length([digit for _, digit in own])
            start = sum(digit.offset for _, digit in own)
            weights = lax.slice_in_dim(weights, start, start + size, axis=axis)
        else:
            weights = jnp.max(weights, axis=axis, keepdims=True)
        places += own
    weights = weights.reshape([digit.size for _, digit in places])
    # Digits of one axis of the array keep their order.
    ranks = [(place, axes[place].index(digit)) for place, digit in places]
    weights = jnp.transpose(weights, sorted(range(len(ranks)), key=ranks.__getitem__))
    sizes, repeated, shape = [], [], []
    for place, digits in enumerate(axes):
        known = [(place, i) in ranks for i in range(len(digits))]
        sizes += [d.size if k else 1 for d, k in zip(digits, known, strict=True)]
        repeated += [digit.size if any(known) else 1 for digit in digits]
        shape.append(pieces.length(digits) if any(known) else 1)
    return jnp.broadcast_to(weights.reshape(sizes), repeated).reshape(shape)


def followed(axes: Axes, shapes: Sequence[Sequence[int]]) -> bool:
    """Returns whether the weights of an array's coordinates are known.

    They are not if positions are lost, if only a part of the digits of an index of the
    weights is left, if some digits belong to weights before a move of others, or if it
    is ambiguous which indices of two axes of the weights form a position.

    Args:
      axes: The axes of the array.
      shapes: The shapes of the weights, as for `expand`.
    """
    number, own = _latest(axes, shapes)
    indices = [_indices(own, axis) for axis in range(len(shapes[number]))]
    counts = [len(index) for index in indices if index]
    if counts != sorted(counts) or sum(count > 1 for count in counts) > 1:
        return False
    used = sum(map(len, itertools.chain(*indices)))
    return used == sum(digit.axis is not None for digits in axes for digit in digits)


def runs(weights: jax.Array, digits: Sequence[Piece]) -> jax.Array:
    """Returns the weights for each value of a number, along a new first axis.

    Args:
      weights: The weights of positions.
      digits: The number's digits, most significant first.
    """
    for number, digit in enumerate(digits):
        assert digit.axis is not None
        axis, end = number + digit.axis, digit.offset + digit.size * digit.stride
        run = lax.slice_in_dim(weights, digit.offset, end, axis=axis)
        shape = weights.shape
        run = run.reshape(*shape[:axis], digit.size, digit.stride, *shape[axis + 1 :])
        weights = jnp.moveaxis(run, axis, number)
    return weights.reshape(-1, *weights.shape[len(digits) :])


def _indices(axes: Axes, axis: int) -> list[list[tuple[int, Piece]]]:
    """Returns the sets of digits that form an index of an axis of the weights.

    Each digit has its place. There are two sets for an attention's queries and keys.
    """
    left = [
        (place, digit)
        for place, digits in enumerate(axes)
        for digit in digits
        if digit.axis == axis
    ]
    found = []
    while index := _index(left):
        found.append(index)
        left = [item for item in left if item not in index]
    return found


def _index(own: list[tuple[int, Piece]]) -> list[tuple[int, Piece]]:
    """Returns the first set of digits that form an index, or none."""
    for first in range(len(own)):
        found: list[tuple[int, Piece]] = []
        for place, digit in own[first:] + own[:first]:
            if not any(_overlap(digit, other) for _, other in found):
                found.append((place, digit))
        found.sort(key=lambda item: -item[1].stride)
        if _is_index([digit for _, digit in found]):
            return found
    return []


def _overlap(one: Piece, other: Piece) -> bool:
    return (
        one.stride < other.stride * other.size and other.stride < one.stride * one.size
    )


def _is_index(digits: Sequence[Piece]) -> bool:
    """Returns whether digits, most significant first, form an index."""
    stride = 1
    for digit in reversed(digits):
        if digit.stride != stride:
            return False
        stride *= digit.size
    return digits[0].highest
