"""How positions correspond to those of one iteration of a loop over some of them."""

from collections.abc import Callable, Sequence

from mofo_jax._covariances import positions
from mofo_jax._covariances.pieces import Axes, Piece

# Of a number of several digits, most significant first.
Digits = tuple[Piece, ...]


def iterated(xs: Sequence[Axes], weights: Sequence[int]) -> Digits:
    """Returns the digits of the weights that a scan iterates over.

    Args:
      xs: The axes of the arrays over whose first axes it iterates.
      weights: The shape of the weights.

    Returns:
      The digits of the first axes of all the arrays that have any, each of another
      axis of the weights. Empty if there are none, if the arrays differ, or if lower
      digits of an axis are unknown.
    """
    related = [axes for axes in xs if axes and positions.related(axes[:1])]
    if not related or any(axes[0] != related[0][0] for axes in related):
        return ()
    digits = related[0][0]
    distinct = len({digit.axis for digit in digits}) == len(digits)
    others = [axes[1:] for axes in related]
    known = all(_is_known(digit, others, weights) for digit in digits)
    return digits if known and distinct else ()


def _is_known(digit: Piece, others: Sequence[Axes], weights: Sequence[int]) -> bool:
    """Returns whether each iteration has a run of positions that is known."""
    if digit.axis is None or not digit.highest or digit.stride < 1:
        return False
    below = [
        any(_is_below(own, digit) for digits in axes for own in digits)
        for axes in others
    ]
    if digit.stride > 1 and not all(below):
        return False
    return digit.offset + digit.size * digit.stride <= weights[digit.axis]


def _is_below(own: Piece, digit: Piece) -> bool:
    """Returns whether a digit is the next lower one of the same index."""
    adjacent = own.stride * own.size == digit.stride
    return own.axis == digit.axis and adjacent and not own.highest


def in_body(axes: Axes, along: Digits, *, iterated: bool) -> Axes:
    """Returns the axes of an operand of a loop in its body.

    Args:
      axes: The axes of the operand.
      along: The digits of the weights that the loop iterates over.
      iterated: Whether the loop iterates over the first axis of the operand.

    Returns:
      The axes relative to the weights of one iteration. If it is not known which
      positions an iteration has, they are lost.
    """
    if not iterated:
        return lost_along(axes, along)
    first, others = axes[0], axes[1:]
    if first != along:
        return positions.lose(others) if positions.related((first,)) else others

    def lower(own: Piece, digit: Piece) -> Piece:
        size = own.stride * own.size
        if own.highest or size > digit.stride:
            return positions.lost_digit(own.size)
        return own._replace(highest=size == digit.stride)

    return _on_axes(others, along, lower)


def lost_along(axes: Axes, along: Digits) -> Axes:
    """Returns the axes with the positions along the axes of some digits lost."""
    return _on_axes(axes, along, lambda own, _: positions.lost_digit(own.size))


def carried(axes: Axes, along: Digits) -> Axes:
    """Returns the axes of a value of an earlier iteration, which had other weights.

    Args:
      axes: The axes in the iteration that computed it.
      along: The digits of the weights that the loop iterates over.
    """
    own = {digit.axis for digits in axes for digit in digits}
    known = own.isdisjoint(digit.axis for digit in along)
    return axes if known else positions.lose(axes)


def outside(axes: Axes, along: Digits) -> Axes:
    """Returns the axes relative to all weights, from those of `in_body`."""
    return _on_axes(axes, along, lambda own, _: own._replace(highest=False))


def _on_axes(
    axes: Axes, along: Digits, change: Callable[[Piece, Piece], Piece]
) -> Axes:
    """Returns the axes with digits changed that are of the same axes as others.

    Args:
      axes: The axes.
      along: The other digits, each of another axis of the weights.
      change: Returns the changed digit, given it and the one of `along`.
    """
    others = {digit.axis: digit for digit in along}
    return tuple(
        tuple(
            change(own, others[own.axis]) if own.axis in others else own
            for own in digits
        )
        for digits in axes
    )
