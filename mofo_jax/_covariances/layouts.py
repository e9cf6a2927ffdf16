"""Where a covariance that a product gives lies in that of a parameter."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mofo_jax._covariances.pieces import Piece


class Layout(NamedTuple):
    """How a covariance that a product gives lies in that of a parameter.

    Attributes:
      lead: The digits of the given covariance's leading axes. Their axes count the
        parameter's batch axes from 0 and then those that are contracted.
      inputs: The digits of its last two.
      free: Further digits of batch axes, which do not change the covariance.
      starts: The first index that it covers of each axis.
      sizes: The length of each axis, those of `batch` batch axes first.
      batch: How many batch axes there are.
    """

    lead: tuple[Piece, ...]
    inputs: tuple[Piece, ...]
    free: tuple[Piece, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    batch: int


def length(layout: Layout) -> int:
    """Returns how many indices the contracted axes of a parameter have."""
    return math.prod(layout.sizes[layout.batch :])


def place(layout: Layout, matrix: jax.Array) -> jax.Array:
    """Returns a parameter's covariance, zero where the given one does not reach.

    Args:
      layout: Of the covariance that is given.
      matrix: This covariance, of shape ``[*lead, n, n]``.

    Returns:
      An array of shape ``[*batch axes, N, N]``.
    """
    lead, inputs = layout.lead, layout.inputs
    matrix = matrix.reshape([digit.size for digit in (*lead, *inputs, *inputs)])
    # Leading axes come first, then rows, then columns; the significant digits first.
    sides = (0, lead), (1, inputs), (2, inputs)
    ranks = [(side, d.axis, -d.stride) for side, digits in sides for d in digits]
    independent = [i for i, (_, axis, _) in enumerate(ranks) if axis is None]
    matrix = jnp.sum(matrix, axis=tuple(independent))
    ranks = [rank for rank in ranks if rank[1] is not None]
    for digit in layout.free:
        matrix = jnp.broadcast_to(matrix[None], (digit.size, *matrix.shape))
        ranks.insert(0, (0, digit.axis, -digit.stride))
    matrix = jnp.transpose(matrix, sorted(range(len(ranks)), key=ranks.__getitem__))
    covered = [1] * len(layout.sizes)
    for digit in (*lead, *inputs, *layout.free):
        if digit.axis is not None:
            covered[digit.axis] *= digit.size
    both = [*range(len(covered)), *range(layout.batch, len(covered))]
    matrix = matrix.reshape([covered[axis] for axis in both])
    edges = [
        (layout.starts[i], layout.sizes[i] - layout.starts[i] - covered[i], 0)
        for i in both
    ]
    if any(edge != (0, 0, 0) for edge in edges):
        matrix = lax.pad(matrix, jnp.zeros((), matrix.dtype), edges)
    length = math.prod(layout.sizes[layout.batch :])
    return matrix.reshape(*layout.sizes[: layout.batch], length, length)


def place_count(layout: Layout, count: jax.Array) -> jax.Array:
    """Returns how many inputs a parameter's covariance is the sum of, in the mean.

    Args:
      layout: Of the covariance that is given.
      count: Of the inputs that it is the sum of, of shape ``lead``.

    Returns:
      An array of the shape of the batch axes. Where the given covariance covers only a
      share of the parameter's, so does its count.
    """
    batch = layout.batch
    covered = math.prod(d.size for d in layout.inputs if d.axis is not None)
    share = covered / math.prod(layout.sizes[batch:])
    bare = layout._replace(
        inputs=(), sizes=layout.sizes[:batch], starts=layout.starts[:batch]
    )
    return place(bare, count).reshape(layout.sizes[:batch]) * share
