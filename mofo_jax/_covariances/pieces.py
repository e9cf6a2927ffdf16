"""Where the axes of an array come from, through reshapes, transposes and slices.

An array that only relabels the coordinates of another, its source, is described axis by
axis: an index along one of its axes is a number of one or more digits, and each digit
is a term of an index along an axis of the source.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A digit that contributes ``offset + digit * stride`` to an index of the source.

    Attributes:
      axis: The axis of the source; None if the source does not depend on the digit.
      size: The number of values of the digit.
      stride: What one more adds to the index.
      offset: What is added where the digit is 0.
    """

    axis: int | None
    size: int
    stride: int = 1
    offset: int = 0


# For each axis of an array its digits, the most significant first; none has one value.
Axes = tuple[tuple[Piece, ...], ...]


def axes_of(sources: Sequence[int | None], shape: Sequence[int]) -> Axes:
    """Returns the axes of an array that are whole axes of its source, or unrelated."""
    pairs = zip(sources, shape, strict=True)
    return tuple(_digits(Piece(axis, size)) for axis, size in pairs)


def whole(shape: Sequence[int]) -> Axes:
    """Returns the axes of an array that is its own source."""
    return axes_of(range(len(shape)), shape)


def unrelated(shape: Sequence[int]) -> Axes:
    """Returns the axes of an array on which its source does not depend."""
    return axes_of([None] * len(shape), shape)


def transpose(axes: Axes, permutation: Sequence[int]) -> Axes:
    """Returns the axes of the transposed array."""
    return tuple(axes[axis] for axis in permutation)


def without(axes: Axes, dimensions: Sequence[int]) -> Axes:
    """Returns the axes that are left when some are squeezed or reduced."""
    return tuple(axis for i, axis in enumerate(axes) if i not in dimensions)


def broadcast(axes: Axes, shape: Sequence[int], dimensions: Sequence[int]) -> Axes:
    """Returns the axes of the array broadcast to a shape.

    Args:
      axes: Of the array.
      shape: Of the result.
      dimensions: The axis of the result that each axis of the array becomes.
    """
    result = list(unrelated(shape))
    for own, axis in zip(axes, dimensions, strict=True):
        if length(own) == shape[axis]:
            result[axis] = own
    return tuple(result)


def take_run(
    pieces: tuple[Piece, ...], start: int, size: int, step: int = 1
) -> tuple[Piece, ...] | None:
    """Returns the digits of a run of an axis, None if they are no such digits.

    Args:
      pieces: The digits of the whole axis.
      start: The first index of the run.
      size: How many indices it has.
      step: From one index to the next; negative to go backwards.

    Returns:
      Digits, with one of a single value where `size` is 1 for the sake of its offset.
    """
    if (start, size, step) == (0, length(pieces), 1):
        return pieces
    if all(piece.axis is None for piece in pieces):
        return _digits(Piece(None, size))
    if len(pieces) != 1:
        return None
    (piece,) = pieces
    offset = piece.offset + start * piece.stride
    return (Piece(piece.axis, size, piece.stride * step, offset),)


def reshape(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Returns the axes of the reshaped array, None if they have no such digits."""
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
    """Returns the length of an axis of some digits."""
    return math.prod(piece.size for piece in pieces)


def join(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Returns the same digits, with neighbours that make one digit joined."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and _continues(joined[-1], piece):
            last = joined.pop()
            size, offset = last.size * piece.size, last.offset + piece.offset
            piece = Piece(piece.axis, size, piece.stride, offset)
        joined.append(piece)
    return tuple(joined)


def _continues(outer: Piece, inner: Piece) -> bool:
    """Returns whether two digits are one number, the inner the less significant."""
    nested = outer.axis is None or outer.stride == inner.stride * inner.size
    return outer.axis == inner.axis and nested


def _split(piece: Piece, size: int) -> tuple[Piece, Piece]:
    """Returns a digit as two, of which the more significant has `size` values."""
    inner = piece.size // size
    stride = 1 if piece.axis is None else piece.stride * inner
    return (
        Piece(piece.axis, size, stride, piece.offset),
        Piece(piece.axis, inner, piece.stride),
    )


def _digits(piece: Piece) -> tuple[Piece, ...]:
    return () if piece.size == 1 else (piece,)
