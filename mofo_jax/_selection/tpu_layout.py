"""The layout of tensors on TPU, and tensors transposed to that layout for the search.

A TPU stores the last two axes of its layout in tiles of 8 x 128, and orders the axes so
that tiles need little padding: for an attention kernel of shape (2048, 32, 64), the
first axis comes last. The compiler lets a loop read only tensors in row-major layout.
Tensors in another layout would be copied, with each row padded to 128 coordinates, and
the copies kept for the whole search.
"""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
from jax import lax

from mofo_jax._selection.patterns import Ranked

_SUBLANES = 8
_LANES = 128


def in_memory_order(tensor: Ranked) -> Ranked:
    """Returns the tensor with its arrays transposed to their order in memory."""
    orders = [major_to_minor(_shard_shape(x)) for x in tensor.arrays]

    def patterns(*arrays: jax.Array) -> jax.Array:
        back = map(np.argsort, orders)
        return tensor.patterns(*map(lax.transpose, arrays, back))

    arrays = tuple(map(lax.transpose, tensor.arrays, orders))
    return dataclasses.replace(tensor, arrays=arrays, patterns=patterns)


@functools.cache
def major_to_minor(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the order of axes in which a TPU stores a tensor.

    It is the order that takes the least memory and, among several, the one closest to
    row-major order. libtpu 0.0.42 chooses the same.
    """
    return min(
        itertools.permutations(range(len(shape))),
        key=lambda order: _padded_size([shape[axis] for axis in order]),
    )


def _padded_size(shape: list[int]) -> int:
    """Returns the number of coordinates in the tiles of a tensor, with padding."""
    *rest, sublanes, lanes = [1, 1, *shape]
    # A short axis has tiles of 1, 2 or 4.
    height = min(_SUBLANES, 1 << (sublanes - 1).bit_length())
    whole = -(-sublanes // height) * height, -(-lanes // _LANES) * _LANES
    return math.prod((*rest, *whole))


def _shard_shape(x: jax.Array) -> tuple[int, ...]:
    """Returns the shape on one device, as far as types know it; Auto axes are not."""
    sharding = jax.typeof(x).sharding
    shape = list(x.shape)
    for axis, names in enumerate(sharding.spec):
        for name in names if isinstance(names, tuple) else (names,):
            if name is not None:
                shape[axis] //= sharding.mesh.shape[name]
    return tuple(shape)
