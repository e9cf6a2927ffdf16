"""Counts that may pass 2**32, as tuples of unsigned words.

JAX has no 64-bit integers unless they are switched on, float32 stops counting at
2**24, and one stacked tensor of a 70B model has 1.9e10 coordinates. So a count is a
tuple of equally shaped unsigned arrays, its words, least significant first. Words that
are known to Python are NumPy's: they cost the compiler nothing.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

Count = tuple[jax.Array, ...]

WORD = np.dtype(np.uint32)


def words_needed(largest: int, word: np.dtype = WORD) -> int:
    """Returns how many words hold every count up to `largest`."""
    return max(1, -(-largest.bit_length() // _bits(word)))


def constant(value: int, words: int, word: np.dtype = WORD) -> Count:
    """Returns `value`, a Python integer >= 0, as `words` words of shape ()."""
    bits = _bits(word)
    values = (
        np.array((value >> (bits * i)) & (2**bits - 1), word) for i in range(words)
    )
    # To the type checker they are JAX's: whatever is done with a word works with both.
    return cast(Count, tuple(values))


def sum_exactly(
    count: Count, add: Callable[[jax.Array], jax.Array], terms: int, words: int
) -> Count:
    """Adds up counts without overflow, whatever their number.

    Args:
      count: The counts to be added, words of any one shape.
      add: Sums an array of words, over axes or over devices.
      terms: How many counts `add` sums into one.
      words: How many words the total needs.

    Returns:
      The total, `words` words of the shape that `add` gives.

    Raises:
      ValueError: If `terms` does not fit in a word.
    """
    if words == 1:
        return (add(count[0]),)
    bits = _bits(count[0].dtype)
    # `terms` limbs of this width cannot overflow a word.
    width = bits - terms.bit_length()
    if width < 1:
        raise ValueError(f"cannot sum {terms} counts with words of {bits} bits")
    total: list[jax.Array] = []
    for index, value in enumerate(count):
        for offset in range(0, bits, width):
            limb = (value >> _word(value, offset)) & _word(value, 2**width - 1)
            limb_sum = add(limb)
            if not total:
                total = [jnp.zeros_like(limb_sum) for _ in range(words)]
            _add_shifted(total, limb_sum, index * bits + offset)
    return tuple(total)


def at_least(a: Count, b: Count) -> jax.Array:
    """Returns a >= b, for counts of equally many words."""
    result = a[0] >= b[0]
    for a_word, b_word in zip(a[1:], b[1:], strict=True):
        result = (a_word > b_word) | ((a_word == b_word) & result)
    return result


def equal(a: Count, b: Count) -> jax.Array:
    """Returns a == b, for counts of equally many words."""
    result = a[0] == b[0]
    for a_word, b_word in zip(a[1:], b[1:], strict=True):
        result &= a_word == b_word
    return result


def subtract(a: Count, b: Count) -> Count:
    """Returns a - b, where a >= b, for counts of equally many words."""
    borrow = jnp.zeros_like(a[0])
    words = []
    for a_word, b_word in zip(a, b, strict=True):
        words.append(a_word - b_word - borrow)
        lacks = (a_word < b_word) | ((a_word == b_word) & (borrow > 0))
        borrow = lacks.astype(a_word.dtype)
    return tuple(words)


def where(condition: jax.Array, a: Count, b: Count) -> Count:
    """Returns a where `condition` holds, else b."""
    return tuple(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True))


def to_float(count: Count) -> jax.Array:
    """Returns the count as float32: rounded, so for guesses and never for decisions."""
    result = jnp.zeros((), jnp.float32)
    for index, word in enumerate(count):
        result += word.astype(jnp.float32) * np.float32(2.0 ** (_bits(WORD) * index))
    return result


def fraction_of(fraction: float | jax.Array, size: int) -> Count:
    """Returns floor(fraction * size), between 1 and `size`, for one block.

    A Python or NumPy number gives `int(size * fraction)`, in float64. An array, traced
    or not, gives the floor of the exact product of its float32 value and `size`, or of
    the float64 product where the array is float64. NumPy's float64 product is rounded
    to 53 bits: for a float32 value it is the same for blocks below 2**29 coordinates,
    and above at most one higher.

    Args:
      fraction: How much of the block, in (0, 1], shape ().
      size: The number of coordinates in the block, from 1 to 2**48.

    Returns:
      The count, words of shape ().
    """
    words = words_needed(size)
    if not isinstance(fraction, jax.Array):
        return constant(max(1, int(size * float(fraction))), words)
    fraction = jnp.clip(fraction, 0, 1)
    if fraction.dtype == jnp.float64:
        product = jnp.floor(fraction * size).astype(jnp.uint64)
        exact: Count = tuple(
            (product >> np.uint64(32 * i)).astype(WORD) for i in range(words)
        )
    else:
        exact = _scaled(fraction.astype(jnp.float32), size)[:words]
    least, most = constant(1, words), constant(size, words)
    exact = where(at_least(exact, least), exact, least)
    return where(at_least(exact, most), most, exact)


def _scaled(fraction: jax.Array, size: int) -> Count:
    """Returns floor(fraction * size) exactly, for float32 and sizes below 2**48."""
    pattern = jax.lax.bitcast_convert_type(fraction, WORD)
    mantissa = (pattern & 0x7FFFFF) | 0x800000
    # fraction == mantissa * 2**-shift; a subnormal is smaller than any size can lift.
    shift = np.uint32(150) - ((pattern >> 23) & 0xFF)
    product = [jnp.zeros((), WORD)] * 3
    for i, mantissa_limb in enumerate((mantissa & 0xFFFF, mantissa >> 16)):
        for j in range(3):
            size_limb = np.uint32((size >> (16 * j)) & 0xFFFF)
            _add_shifted(product, mantissa_limb * size_limb, 16 * (i + j))
    return _shift_right(product, shift)


def _shift_right(words: list[jax.Array], shift: jax.Array) -> Count:
    """Shifts the number held by `words` right by a traced number of bits."""
    whole, part = shift >> 5, shift & 31
    zero = jnp.zeros((), WORD)
    shifted = []
    for i in range(len(words)):
        result = zero
        for j in range(i, len(words)):
            above = words[j + 1] if j + 1 < len(words) else zero
            # A shift by the whole width is undefined, hence in two steps.
            piece = (words[j] >> part) | ((above << 1) << (31 - part))
            result = jnp.where(whole == j - i, piece, result)
        shifted.append(result)
    return tuple(shifted)


def _add_shifted(total: list[jax.Array], value: jax.Array, offset: int) -> None:
    """Adds value * 2**offset to the words of `total`, in place, carrying over."""
    bits = _bits(value.dtype)
    index, shift = divmod(offset, bits)
    pieces = [value << _word(value, shift)]
    if shift:
        pieces.append(value >> _word(value, bits - shift))
    for position, piece in enumerate(pieces, start=index):
        carry = piece
        for i in range(position, len(total)):
            total[i] = total[i] + carry
            carry = (total[i] < carry).astype(value.dtype)


def _word(like: jax.Array, value: int) -> np.ndarray:
    return np.array(value, like.dtype)


def _bits(word: np.dtype) -> int:
    return np.iinfo(word).bits
