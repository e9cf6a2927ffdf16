"""How the axes of an array correspond to those of the weights of positions.

The correspondence has the form of `pieces`, with the weights as the source. Two axes
may correspond to the same axis of the weights, such as those of the queries and the
keys of an attention. The axes of the batch's weights come first, followed by those of
weights after moves of positions.
"""

import sys
from collections.abc import Sequence

from mofo_jax._covariances import pieces
from mofo_jax._covariances.pieces import Axes, Piece

# The axis of the weights, in a digit of an axis whose order of positions is unknown.
LOST = sys.maxsize


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


def join(first: Axes, second: Axes, rank: int) -> Axes:
    """Joins the axes of two operands of a primitive, of one shape.

    Where both correspond to axes of weights, known positions have precedence over lost
    ones, and those of the batch over moved ones, unless the moved operand has an axis
    of positions that the other one does not have.

    Args:
      first: The axes of an operand.
      second: The axes of another.
      rank: The number of axes of the batch's weights.
    """
    first_moved, second_moved = _moved(first, rank), _moved(second, rank)
    both = first_moved & known(second) | second_moved & known(first)
    preferred = None
    if first_moved and not second_moved & both:
        preferred = second if first_moved <= known(second) else first
    elif second_moved and not first_moved & both:
        preferred = first if second_moved <= known(first) else second
    return tuple(
        preferred[i] if preferred is not None and i in both else _joined(one, other)
        for i, (one, other) in enumerate(zip(first, second, strict=True))
    )


def _joined(one: tuple[Piece, ...], other: tuple[Piece, ...]) -> tuple[Piece, ...]:
    if one == other or not is_related(other) or (_is_lost(other) and is_related(one)):
        return one
    if not is_related(one) or _is_lost(one):
        return other
    # Such as the sum of an array and of the same array reversed.
    in_place = [axis for axis in (one, other) if all(p.stride > 0 for p in axis)]
    return in_place[0] if len(in_place) == 1 else lost(pieces.length(one))


def agree(first: Axes, second: Axes) -> Axes:
    """Returns the axes of an array that is one of two, of one shape.

    Where both have positions, but not the same, they are lost.
    """

    def one_of(one: tuple[Piece, ...], other: tuple[Piece, ...]) -> tuple[Piece, ...]:
        if one == other or not is_related(other):
            return one
        return lost(pieces.length(one)) if is_related(one) else other

    return tuple(one_of(*pair) for pair in zip(first, second, strict=True))


def lost_digit(size: int) -> Piece:
    """Returns a digit of an unknown position."""
    return Piece(LOST, size, stride=0, highest=False)


def lost(size: int) -> tuple[Piece, ...]:
    """Returns the digits of an axis whose order of positions is unknown."""
    return () if size == 1 else (lost_digit(size),)


def reordered(axis: tuple[Piece, ...], size: int) -> tuple[Piece, ...]:
    """Returns an axis in an unknown order, perhaps of another length."""
    return lost(size) if is_related(axis) else pieces.unrelated([size])[0]


def lose(axes: Axes, dimensions: Sequence[int] | None = None) -> Axes:
    """Returns the axes with the positions of some, or of all, lost."""
    return tuple(
        reordered(axis, pieces.length(axis))
        if dimensions is None or i in dimensions
        else axis
        for i, axis in enumerate(axes)
    )


def related(axes: Sequence[tuple[Piece, ...]]) -> bool:
    """Returns whether any axis corresponds to one of the weights."""
    return any(is_related(axis) for axis in axes)


def single(axis: tuple[Piece, ...]) -> int | None:
    """Returns the axis of the weights if there is one digit, of known positions."""
    return axis[0].axis if len(axis) == 1 and not _is_lost(axis) else None


def is_related(axis: tuple[Piece, ...]) -> bool:
    return any(piece.axis is not None for piece in axis)


def _is_lost(axis: tuple[Piece, ...]) -> bool:
    return any(piece.axis == LOST for piece in axis)


def known(axes: Axes) -> set[int]:
    """Returns the numbers of the axes with known positions."""
    return {i for i, axis in enumerate(axes) if is_related(axis) and not _is_lost(axis)}


def _moved(axes: Axes, rank: int) -> set[int]:
    """Returns the numbers of the axes with known positions that were moved."""
    return {
        i
        for i in known(axes)
        if any(piece.axis is not None and piece.axis >= rank for piece in axes[i])
    }
