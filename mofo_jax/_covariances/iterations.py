"""How positions correspond to those of one iteration of a loop over some of them."""

from collections.abc import Callable, Sequence

from mofo_jax._covariances import positions
from mofo_jax._covariances.pieces import Axes, Piece


def iterated(xs: Sequence[Axes], weights: Sequence[int]) -> Piece | None:
    """Returns the digit of the weights that a scan iterates over.

    Args:
      xs: The axes of the arrays over whose first axes it iterates.
      weights: The shape of the weights.

    Returns:
      The digit of all the arrays that have one of its axis. None if there is none, if
      they differ, or if the lower digits of the axis are unknown.
    """
    firsts = [
        (axes[0], axes[1:]) for axes in xs if axes and positions.related(axes[:1])
    ]
    if not firsts or any(first != firsts[0][0] for first, _ in firsts):
        return None
    digit, *more = firsts[0][0]
    if more or digit.axis is None or not digit.highest or digit.stride < 1:
        return None
    below = [
        any(_is_below(own, digit) for digits in axes for own in digits)
        for _, axes in firsts
    ]
    if digit.stride > 1 and not all(below):
        return None
    fits = digit.offset + digit.size * digit.stride <= weights[digit.axis]
    return digit if fits else None


def _is_below(own: Piece, digit: Piece) -> bool:
    """Returns whether a digit is the next lower one of the same index."""
    adjacent = own.stride * own.size == digit.stride
    return own.axis == digit.axis and adjacent and not own.highest


def in_body(axes: Axes, digit: Piece | None, *, iterated: bool) -> Axes:
    """Returns the axes of an operand of a loop in its body.

    Args:
      axes: The axes of the operand.
      digit: The digit of the weights that the loop iterates over, or None.
      iterated: Whether the loop iterates over the first axis of the operand.

    Returns:
      The axes relative to the weights of one iteration. If it is not known which
      positions an iteration has, they are lost.
    """
    if not iterated:
        return lost_along(axes, digit)
    first, others = axes[0], axes[1:]
    if digit is None or first != (digit,):
        return positions.lose(others) if positions.related((first,)) else others

    def lower(own: Piece) -> Piece:
        size = own.stride * own.size
        if own.highest or size > digit.stride:
            return positions.lost_digit(own.size)
        return own._replace(highest=size == digit.stride)

    return _on_axis(others, digit, lower)


def lost_along(axes: Axes, digit: Piece | None) -> Axes:
    """Returns the axes with the positions along the axis of a digit lost."""
    return _on_axis(axes, digit, lambda own: positions.lost_digit(own.size))


def carried(axes: Axes, digit: Piece | None) -> Axes:
    """Returns the axes of a value of an earlier iteration, which had other weights.

    Args:
      axes: The axes in the iteration that computed it.
      digit: The digit of the weights that the loop iterates over, or None.
    """
    known = digit is None or all(
        own.axis != digit.axis for digits in axes for own in digits
    )
    return axes if known else positions.lose(axes)


def outside(axes: Axes, digit: Piece | None) -> Axes:
    """Returns the axes relative to all weights, from those of `in_body`."""
    return _on_axis(axes, digit, lambda own: own._replace(highest=False))


def _on_axis(axes: Axes, digit: Piece | None, change: Callable[[Piece], Piece]) -> Axes:
    """Returns the axes with the digits of the same axis of the weights changed."""
    if digit is None:
        return axes
    return tuple(
        tuple(change(own) if own.axis == digit.axis else own for own in digits)
        for digits in axes
    )
