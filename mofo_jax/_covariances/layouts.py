"""The position of a product's covariance within that of a parameter."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mofo_jax._covariances.pieces import Piece


class Layout(NamedTuple):
    """The position of a product's covariance within that of a parameter.

    Attributes:
      lead: The digits (see `pieces`) of the leading axes of the product's covariance.
        Their axes number the parameter's batch axes from 0, followed by the contracted
        axes.
      inputs: The digits of its last two axes.
      free: Additional digits of batch axes, on which the covariance does not depend.
      starts: The first index that it covers along each axis.
      sizes: The length of each axis, starting with those of the `batch` batch axes.
      batch: The number of batch axes.
    """

    lead: tuple[Piece, ...]
    inputs: tuple[Piece, ...]
    free: tuple[Piece, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    batch: int


def without(layout: Layout, axis: int) -> Layout:
    """Returns the layout without a batch axis of which it covers one index."""

    def renumbered(digits: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return tuple(
            digit._replace(axis=digit.axis - 1)
            if digit.axis is not None and digit.axis > axis
            else digit
            for digit in digits
        )

    def rest(items: tuple[int, ...]) -> tuple[int, ...]:
        return items[:axis] + items[axis + 1 :]

    return Layout(
        renumbered(layout.lead),
        renumbered(layout.inputs),
        renumbered(layout.free),
        rest(layout.starts),
        rest(layout.sizes),
        layout.batch - 1,
    )


def length(layout: Layout) -> int:
    """Returns the number of indices of a parameter's contracted axes."""
    return math.prod(layout.sizes[layout.batch :])


def place(layout: Layout, matrix: jax.Array) -> jax.Array:
    """Returns a parameter's covariance, which is zero where the product has none.

    Args:
      layout: The position of the product's covariance.
      matrix: The product's covariance, of shape ``[*lead, n, n]``.

    Returns:
      An array of shape ``[*batch axes, N, N]``.
    """
    return _place(layout, matrix, (layout.inputs, layout.inputs))


def _place(
    layout: Layout, array: jax.Array, sides: Sequence[tuple[Piece, ...]]
) -> jax.Array:
    """Returns an array with the axes of `place`, and the given digits on each side."""
    digits = [(0, layout.lead), *enumerate(sides, start=1)]
    # Leading axes, then rows, then columns, each from the most significant digit.
    ranks = [(side, d.axis, -d.stride) for side, own in digits for d in own]
    array = array.reshape([digit.size for _, own in digits for digit in own])
    independent = [i for i, (_, axis, _) in enumerate(ranks) if axis is None]
    array = jnp.sum(array, axis=tuple(independent))
    ranks = [rank for rank in ranks if rank[1] is not None]
    for digit in layout.free:
        array = jnp.broadcast_to(array[None], (digit.size, *array.shape))
        ranks.insert(0, (0, digit.axis, -digit.stride))
    array = jnp.transpose(array, sorted(range(len(ranks)), key=ranks.__getitem__))
    covered = [1] * len(layout.sizes)
    for digit in (*layout.lead, *layout.inputs, *layout.free):
        if digit.axis is not None:
            covered[digit.axis] *= digit.size
    axes = [*range(layout.batch)]
    axes += [*range(layout.batch, len(covered))] * len(sides)
    array = array.reshape([covered[axis] for axis in axes])
    edges = [
        (layout.starts[i], layout.sizes[i] - layout.starts[i] - covered[i], 0)
        for i in axes
    ]
    if any(edge != (0, 0, 0) for edge in edges):
        array = lax.pad(array, jnp.zeros((), array.dtype), edges)
    return array.reshape(*layout.sizes[: layout.batch], *[length(layout)] * len(sides))


def place_count(layout: Layout, count: jax.Array) -> jax.Array:
    """Returns the number of inputs in the sum of a parameter's covariance.

    Args:
      layout: The position of the product's covariance.
      count: The number of inputs in its sum for each index, of shape ``[*lead, n]``.

    Returns:
      An array of shape ``[*batch axes, N]``, which is zero where the product has none.
    """
    lead, inputs = layout.lead, layout.inputs
    count = count.reshape([digit.size for digit in (*lead, *inputs)])
    # The indices of a digit on which the parameter does not depend are added in the
    # product, so that their sum is one input.
    independent = [i for i, d in enumerate(inputs, len(lead)) if d.axis is None]
    count = jnp.max(count, axis=tuple(independent))
    own = tuple(digit for digit in inputs if digit.axis is not None)
    return _place(layout, count, (own,))
