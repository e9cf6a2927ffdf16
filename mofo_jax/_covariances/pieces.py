"""The origin of an array's axes, through reshapes, transposes and slices.

An array whose coordinates are those of another array, its source, in another order is
described axis by axis. An index along one of its axes is a number of one or more
digits, and each digit contributes a term to an index along an axis of the source.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A digit that contributes ``offset + digit * stride`` to an index of the source.

    Attributes:
      axis: The axis of the source; None if the source does not depend on the digit.
      size: The number of values of the digit.
      stride: The increase of the index per unit of the digit.
      offset: The term of the digit 0.
      highest: False for a lower digit of a split axis. Without the digits above it, the
        array does not say which run of indices it holds.
    """

    axis: int | None
    size: int
    stride: int = 1
    offset: int = 0
    highest: bool = True


# The digits of each axis of an array, most significant first. An axis of length 1 may
# have none.
Axes = tuple[tuple[Piece, ...], ...]


def axes_of(sources: Sequence[int | None], shape: Sequence[int]) -> Axes:
    """Returns the axes of an array, each a whole axis of the source or unrelated."""
    pairs = zip(sources, shape, strict=True)
    return tuple(_digits(Piece(axis, size)) for axis, size in pairs)


def whole(shape: Sequence[int]) -> Axes:
    """Returns the axes of an array that is its own source."""
    return axes_of(range(len(shape)), shape)


def unrelated(shape: Sequence[int]) -> Axes:
    """Returns the axes of an array that does not depend on its source."""
    return axes_of([None] * len(shape), shape)


def transpose(axes: Axes, permutation: Sequence[int]) -> Axes:
    """Returns the axes of the transposed array."""
    return tuple(axes[axis] for axis in permutation)


def without(axes: Axes, dimensions: Sequence[int]) -> Axes:
    """Returns the axes that remain when some are squeezed or reduced."""
    return tuple(axis for i, axis in enumerate(axes) if i not in dimensions)


def broadcast(axes: Axes, shape: Sequence[int], dimensions: Sequence[int]) -> Axes:
    """Returns the axes of the array broadcast to a shape.

    Args:
      axes: The array's axes.
      shape: The shape of the result.
      dimensions: The axis of the result for each axis of the array.
    """
    result = list(unrelated(shape))
    for own, axis in zip(axes, dimensions, strict=True):
        if length(own) == shape[axis]:
            result[axis] = own
    return tuple(result)


def expands(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Returns whether axes of length 1 can be repeated so that a shape is another."""
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(own in (1, size) for own, size in pairs)


def expand(axes: Axes, shape: Sequence[int]) -> Axes:
    """Returns the axes of the array with axes of length 1 repeated (see `expands`)."""
    return broadcast(axes, shape, range(len(shape)))


def take_run(
    pieces: tuple[Piece, ...], start: int, size: int, step: int = 1
) -> tuple[Piece, ...] | None:
    """Returns the digits of a run of indices of an axis, or None if it has no digits.

    Args:
      pieces: The digits of the whole axis.
      start: The first index of the run.
      size: The number of indices.
      step: The difference of successive indices; negative to run backwards.

    Returns:
      Digits. If `size` is 1, a digit with a single value keeps the offset.
    """
    if (start, size, step) == (0, length(pieces), 1):
        return pieces
    if all(piece.axis is None for piece in pieces):
        return _digits(Piece(None, size))
    if len(pieces) != 1:
        return None
    (piece,) = pieces
    offset = piece.offset + start * piece.stride
    return (Piece(piece.axis, size, piece.stride * step, offset, piece.highest),)


def reshape(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Returns the axes of the reshaped array, or None if they have no digits."""
    if 0 in shape or any(piece.size == 0 for axis in axes for piece in axis):
        return None
    left = [piece for axis in axes for piece in axis][::-1]
    result = []
    for size in shape:
        taken: list[Piece] = []
        while size > 1:
            piece = left.pop()
            if size % piece.size:
                if piece.size % size:
                    return None
                piece, rest = _split(piece, size)
                left.append(rest)
            taken.append(piece)
            size //= piece.size
        if not taken and left and left[-1].size == 1:
            taken.append(left.pop())
        result.append(join(taken))
    return tuple(result)


def length(pieces: Sequence[Piece]) -> int:
    """Returns the length of an axis with the given digits."""
    return math.prod(piece.size for piece in pieces)


def join(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Returns the same digits, with adjacent ones merged if they form one digit."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and _continues(joined[-1], piece):
            last = joined.pop()
            size, offset = last.size * piece.size, last.offset + piece.offset
            piece = Piece(piece.axis, size, piece.stride, offset, last.highest)
        joined.append(piece)
    return tuple(joined)


def _continues(outer: Piece, inner: Piece) -> bool:
    """Returns whether two digits form one number, the inner one less significant."""
    nested = outer.axis is None or outer.stride == inner.stride * inner.size
    return outer.axis == inner.axis and nested


def _split(piece: Piece, size: int) -> tuple[Piece, Piece]:
    """Splits a digit in two, the more significant of which has `size` values."""
    inner = piece.size // size
    if piece.axis is None:
        return Piece(None, size), Piece(None, inner)
    return (
        Piece(piece.axis, size, piece.stride * inner, piece.offset, piece.highest),
        Piece(piece.axis, inner, piece.stride, highest=False),
    )


def _digits(piece: Piece) -> tuple[Piece, ...]:
    return () if piece.size == 1 else (piece,)
