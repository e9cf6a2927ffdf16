"""How a TPU lays out a tensor, and the search's tensors in that order.

A TPU keeps the last two axes in tiles of 8 x 128 and chooses which axes these are so
that little is lost at their edges: of an attention kernel (2048, 32, 64) the first axis
comes last. The compiler lets a loop read its tensors row by row only. What is laid out
otherwise would be copied, each row padded to 128 coordinates, for as long as the search
takes.
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
    """Returns the same tensor, of arrays whose axes are in their order in memory."""
    orders = [major_to_minor(_shard_shape(x)) for x in tensor.arrays]

    def patterns(*arrays: jax.Array) -> jax.Array:
        back = map(np.argsort, orders)
        return tensor.patterns(*map(lax.transpose, arrays, back))

    arrays = tuple(map(lax.transpose, tensor.arrays, orders))
    return dataclasses.replace(tensor, arrays=arrays, patterns=patterns)


@functools.cache
def major_to_minor(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the order of axes in which a TPU keeps a tensor: the least memory.

    Where two orders take the same, it is the one closest to row by row. That is what
    libtpu 0.0.42 does.
    """
    return min(
        itertools.permutations(range(len(shape))),
        key=lambda order: _padded_size([shape[axis] for axis in order]),
    )


def _padded_size(shape: list[int]) -> int:
    """Returns how many coordinates the tiles of a tensor hold."""
    *rest, sublanes, lanes = [1, 1, *shape]
    # A short axis has tiles of 1, 2 or 4.
    height = min(_SUBLANES, 1 << (sublanes - 1).bit_length())
    whole = -(-sublanes // height) * height, -(-lanes // _LANES) * _LANES
    return math.prod((*rest, *whole))


def _shard_shape(x: jax.Array) -> tuple[int, ...]:
    """Returns the shape on a device as far as types tell; of Auto axes they do not."""
    sharding = jax.typeof(x).sharding
    shape = list(x.shape)
    for axis, names in enumerate(sharding.spec):
        for name in names if isinstance(names, tuple) else (names,):
            if name is not None:
                shape[axis] //= sharding.mesh.shape[name]
    return tuple(shape)
