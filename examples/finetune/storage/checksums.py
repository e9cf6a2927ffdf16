"""Checksums that tell whether a checkpoint holds what was saved.

Counted on the devices, where the arrays lie, in one pass and with no copy on the host;
sums of integers, so they are the same however an array is split. They find accidents,
every single flipped bit among them, not forgery.
"""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

# Odd numbers with as many ones as zeros, in no order.
_MULTIPLIERS = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))


def of_tree(tree: Any) -> str:
    """A digest of a tree of arrays: their paths, dtypes, shapes and every bit.

    Args:
      tree: JAX arrays of any layout, alone or sharded.

    Returns:
      64 hexadecimal digits; the same for the same tree under another sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # All of them begun before the first is waited for.
    sums = [_sums(leaf) for _, leaf in leaves]
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {found.tolist()}"
        for (path, leaf), found in zip(leaves, jax.device_get(sums), strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_json(value: Any) -> str:
    """A digest of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """Two sums of an array's words, uint32 `[2]`, each word times its own odd weight.

    An odd weight loses no bit of a word, so that no single change goes unseen.
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
    """The bits of an array as uint32; numbers of 64 bits are two words."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    bits = 8 * x.dtype.itemsize
    unsigned = jnp.dtype(f"uint{min(bits, 32)}")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)])
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _odd(place: jax.Array, first: int, second: int) -> jax.Array:
    """Odd numbers that say little of the places they belong to."""
    mixed = place * jnp.uint32(first)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(second)
    return (mixed ^ (mixed >> 13)) | 1
