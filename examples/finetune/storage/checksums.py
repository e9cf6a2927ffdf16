"""Checksums that detect changes in a checkpoint.

They are computed on the devices, in one pass and without a copy on the host. As sums of
integers, they do not depend on the sharding. They detect accidental damage, including
every single flipped bit, but not forgery.
"""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

# Odd numbers with equally many ones and zeros, in no particular order.
_MULTIPLIERS = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))


def of_tree(tree: Any) -> str:
    """Returns a digest of a tree of arrays: paths, dtypes, shapes and every bit.

    Args:
      tree: JAX arrays with any sharding.

    Returns:
      64 hexadecimal digits, which do not depend on the sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # All sums are dispatched before the first is awaited.
    sums = [_sums(leaf) for _, leaf in leaves]
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {found.tolist()}"
        for (path, leaf), found in zip(leaves, jax.device_get(sums), strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_json(value: Any) -> str:
    """Returns a digest of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """Returns two sums of an array's words, uint32 `[2]`, with odd weights.

    Multiplication by an odd weight is invertible, so that every single change is seen.
    """
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = jnp.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += stride * index
    weighted = (words * _odd(place, *multipliers) for multipliers in _MULTIPLIERS)
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in weighted])


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of an array as uint32; 64-bit numbers become two words."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    bits = 8 * x.dtype.itemsize
    unsigned = jnp.dtype(f"uint{min(bits, 32)}")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)])
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _odd(place: jax.Array, first: int, second: int) -> jax.Array:
    """Returns odd pseudorandom numbers for the given positions."""
    mixed = place * jnp.uint32(first)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(second)
    return (mixed ^ (mixed >> 13)) | 1
