"""The position of a product's covariance within that of a parameter."""

import math
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
    lead, inputs = layout.lead, layout.inputs
    matrix = matrix.reshape([digit.size for digit in (*lead, *inputs, *inputs)])
    # Leading axes, then rows, then columns, each from the most significant digit.
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
    """Returns the mean number of inputs in the sum of a parameter's covariance.

    Args:
      layout: The position of the product's covariance.
      count: The number of inputs in its sum, of shape ``lead``.

    Returns:
      An array with the shape of the batch axes. If the product's covariance covers only
      a share of the parameter's, the count is reduced by that share.
    """
    batch = layout.batch
    covered = math.prod(d.size for d in layout.inputs if d.axis is not None)
    share = covered / math.prod(layout.sizes[batch:])
    bare = layout._replace(
        inputs=(), sizes=layout.sizes[:batch], starts=layout.starts[:batch]
    )
    return place(bare, count).reshape(layout.sizes[:batch]) * share
