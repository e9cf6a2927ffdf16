"""Counts of coordinates that may exceed 32 bits, as tuples of unsigned limbs.

JAX has no 64-bit integers unless they are enabled, float32 is exact only up to 2**24,
and a block that several tensors share may have 1e10 coordinates. A count is therefore a
tuple of one or two uint32 arrays of the same shape, called limbs, with the least
significant first. Counts in blocks of fewer than 2**32 coordinates need only one limb,
and thus cost nothing extra.
"""

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

Count = tuple[jax.Array, ...]

LIMB = np.dtype(np.uint32)
# Sums and products are computed on digits of 8 bits, which leaves 24 bits for carries.
_DIGIT = 8
_DIGITS = 32 // _DIGIT
_MASK = np.uint32(2**_DIGIT - 1)
_MOST_TERMS = 2 ** (32 - _DIGIT) - 1


def limbs_for(size: int) -> int:
    """Returns the number of limbs that hold every count up to `size`."""
    return 1 if size < 2**32 else 2


def constant(value: int, limbs: int) -> Count:
    """Returns `value`, a Python integer >= 0, as NumPy limbs of shape ()."""
    words = (np.array((value >> (32 * i)) & 0xFFFFFFFF, LIMB) for i in range(limbs))
    # Typed as JAX arrays: every operation here works on NumPy arrays too.
    return cast(Count, tuple(words))


def add_up(
    count: Count, add: Callable[[jax.Array], jax.Array], terms: int, limbs: int
) -> Count:
    """Adds counts without overflow.

    Args:
      count: The counts to be added, limbs of the same shape.
      add: A function that sums an array of limbs, over axes or over devices.
      terms: The number of counts that `add` sums into one.
      limbs: The number of limbs of the total.

    Returns:
      The total, `limbs` limbs of the shape that `add` returns.

    Raises:
      ValueError: If there are too many terms.
    """
    if limbs == 1:
        return (add(count[0]),)
    if terms > _MOST_TERMS:
        raise ValueError(f"cannot add up {terms} counts, at most {_MOST_TERMS}")
    sums = [add(digit) for limb in count for digit in _digits(limb)]
    return _carried(sums, limbs)


def _digits(limb: jax.Array) -> list[jax.Array]:
    return [(limb >> np.uint32(_DIGIT * i)) & _MASK for i in range(_DIGITS)]


def _carried(digits: list[jax.Array], limbs: int) -> Count:
    """Returns the limbs of a number whose digits may exceed their base."""
    zero = jnp.zeros_like(digits[0])
    carry, total = zero, [zero] * limbs
    for i in range(_DIGITS * limbs):
        digit = carry + digits[i] if i < len(digits) else carry
        place = np.uint32(_DIGIT * (i % _DIGITS))
        total[i // _DIGITS] |= (digit & _MASK) << place
        carry = digit >> np.uint32(_DIGIT)
    return tuple(total)


def at_least(a: Count, b: Count) -> jax.Array:
    """Returns a >= b, for counts with the same number of limbs."""
    result = a[0] >= b[0]
    for high_a, high_b in zip(a[1:], b[1:], strict=True):
        result = (high_a > high_b) | ((high_a == high_b) & result)
    return result


def equal(a: Count, b: Count) -> jax.Array:
    """Returns a == b, for counts with the same number of limbs."""
    result = a[0] == b[0]
    for high_a, high_b in zip(a[1:], b[1:], strict=True):
        result &= high_a == high_b
    return result


def subtract(a: Count, b: Count) -> Count:
    """Returns a - b, which must not be negative."""
    low = a[0] - b[0]
    if len(a) == 1:
        return (low,)
    return low, a[1] - b[1] - (a[0] < b[0]).astype(LIMB)


def where(condition: jax.Array, a: Count, b: Count) -> Count:
    """Returns a where `condition` holds, else b."""
    return tuple(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True))


def to_float(count: Count) -> jax.Array:
    """Returns the count rounded to float32, for estimates only."""
    low, *high = (limb.astype(jnp.float32) for limb in count)
    return low + np.float32(2.0**32) * high[0] if high else low


def fraction_of(fraction: jax.typing.ArrayLike, size: int) -> Count:
    """Returns floor(fraction * size), between 1 and `size`, for one block.

    For a Python or NumPy number this is `int(size * fraction)`, in float64. For an
    array, traced or not, it is the floor of the exact product of its float32 value and
    `size`, or of the float64 product if the array is float64. NumPy rounds its float64
    product to 53 bits: for a float32 value, the result is the same for blocks of fewer
    than 2**29 coordinates, and NumPy's is at most 1 higher for larger ones.

    Args:
      fraction: The share of the block, in (0, 1], shape ().
      size: The number of coordinates in the block, from 1 to 2**63.

    Returns:
      The count, limbs of shape ().
    """
    limbs = limbs_for(size)
    if not isinstance(fraction, jax.Array):
        return constant(max(1, int(size * float(cast(float, fraction)))), limbs)
    return _floor_of(fraction, size, limbs)


@functools.partial(jax.jit, static_argnames=("size", "limbs"))
def _floor_of(fraction: jax.Array, size: int, limbs: int) -> Count:
    fraction = jnp.clip(fraction, 0, 1)
    if fraction.dtype == jnp.float64:
        product = jnp.floor(fraction * size).astype(jnp.uint64)
        exact: Count = tuple(
            (product >> np.uint64(32 * i)).astype(LIMB) for i in range(limbs)
        )
    else:
        exact = _product(fraction.astype(jnp.float32), size, limbs)
    least, most = constant(1, limbs), constant(size, limbs)
    exact = where(at_least(exact, least), exact, least)
    return where(at_least(exact, most), most, exact)


def _product(fraction: jax.Array, size: int, limbs: int) -> Count:
    """Returns floor(fraction * size) exactly, for a float32 fraction in [0, 1]."""
    pattern = jax.lax.bitcast_convert_type(fraction, LIMB)
    # fraction == mantissa * 2**-shift, except for subnormal fractions, which are so
    # small that the product is 0 for any size.
    mantissa = (pattern & 0x7FFFFF) | 0x800000
    shift = np.uint32(150) - (pattern >> 23)
    carry = jnp.zeros_like(mantissa)
    digits = []
    for i in range(0, max(size.bit_length(), 1), _DIGIT):
        term = mantissa * np.uint32((size >> i) & 0xFF) + carry
        digits.append(term & _MASK)
        carry = term >> np.uint32(_DIGIT)
    digits += _digits(carry)
    # The shift is at most 150 bits, beyond which there are only zeros.
    wanted = _DIGITS * limbs + 1
    padded = jnp.stack([*digits, *[jnp.zeros_like(carry)] * (wanted + 20)])
    whole, part = shift // _DIGIT, shift % _DIGIT
    kept = jax.lax.dynamic_slice(padded, (whole,), (wanted,))
    pairs = kept[:-1] | (kept[1:] << np.uint32(_DIGIT))
    return _carried(list((pairs >> part) & _MASK), limbs)
