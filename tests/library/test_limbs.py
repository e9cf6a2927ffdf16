"""Counts of more than 32 bits, against Python's integers."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mofo_jax._selection import limbs
from tests.helpers import random_generator, x64


def split(values: np.ndarray, size: int) -> limbs.Count:
    """Returns the limbs of an array of Python integers."""
    return tuple(
        jnp.asarray(((values >> (32 * i)) & (2**32 - 1)).astype(np.uint32))
        for i in range(size)
    )


def join(count: limbs.Count) -> np.ndarray:
    """Returns the array of Python integers that limbs represent."""
    return sum(np.asarray(w).astype(object) << (32 * i) for i, w in enumerate(count))


def interesting(size: int) -> np.ndarray:
    """Returns random counts, and those next to powers of two, where carries occur."""
    most = (1 << (32 * size)) - 1
    edges = {
        min(max((1 << shift) + offset, 0), most)
        for shift in range(32 * size + 1)
        for offset in (-2, -1, 0, 1)
    }
    rng = random_generator()
    random = {int.from_bytes(rng.bytes(4 * size), "little") for _ in range(60)}
    return np.array(sorted(edges | random), object)


@pytest.mark.parametrize("size", [1, 2])
def test_comparisons_and_differences_of_all_pairs(size: int) -> None:
    values = interesting(size)
    a, b = (grid.ravel() for grid in np.meshgrid(values, values))
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    counts_a, counts_b = split(a, size), split(b, size)
    np.testing.assert_array_equal(limbs.at_least(counts_a, counts_b), a >= b)
    np.testing.assert_array_equal(limbs.equal(counts_a, counts_b), a == b)
    difference = limbs.subtract(split(larger, size), split(smaller, size))
    np.testing.assert_array_equal(join(difference), larger - smaller)
    assert all(limb.dtype == np.uint32 for limb in difference)


def test_where_chooses_all_limbs() -> None:
    a, b = np.array([2**40, 5], object), np.array([7, 2**33 + 1], object)
    chosen = limbs.where(jnp.array([True, False]), split(a, 2), split(b, 2))
    assert join(chosen).tolist() == [2**40, 2**33 + 1]


def add_rows(limb: jax.Array) -> jax.Array:
    """Returns the sums along the first axis."""
    return jnp.sum(limb, axis=0, dtype=limb.dtype)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("terms", [1, 2, 3, 257, 70_000])
def test_sums_are_exact(size: int, terms: int) -> None:
    rng = random_generator(terms)
    # The largest terms whose sum fits in two limbs.
    most = (2**64 - 1) // terms if size == 2 else 2**32 - 1
    values = rng.integers(most, size=(terms, 20), dtype=np.uint64, endpoint=True)
    values = values.astype(object)
    values[:, 0] = most
    total = limbs.add_up(split(values, size), add_rows, terms, 2)
    assert len(total) == 2
    np.testing.assert_array_equal(join(total), values.sum(axis=0))


def test_a_sum_that_fits_in_one_limb_is_a_plain_sum() -> None:
    (total,) = limbs.add_up(split(np.arange(200).astype(object), 1), add_rows, 200, 1)
    assert total == 199 * 100


def test_too_many_terms_are_refused() -> None:
    count = split(np.zeros(1, object), 1)
    with pytest.raises(ValueError, match="cannot add up 16777216 counts, at most 1677"):
        limbs.add_up(count, add_rows, 2**24, 2)


@pytest.mark.parametrize(
    ("largest", "size"), [(0, 1), (1, 1), (2**32 - 1, 1), (2**32, 2), (2**63, 2)]
)
def test_limbs_for(largest: int, size: int) -> None:
    assert limbs.limbs_for(largest) == size
    assert join(limbs.constant(largest, size)) == largest


def test_to_float_rounds_to_the_nearest_float32_or_its_neighbour() -> None:
    values = interesting(2)
    rounded = np.asarray(limbs.to_float(split(values, 2)))
    np.testing.assert_allclose(rounded, values.astype(np.float64), rtol=2e-7)


def exact_share(fraction: float, size: int) -> int:
    """Returns floor(fraction * size) of the exact product, between 1 and size."""
    return min(max(math.floor(Fraction(fraction) * size), 1), size)


def random_fractions(size: int, seed: int) -> np.ndarray:
    """Returns float32 fractions in (0, 1], many of them next to a multiple of 1/size.

    No subnormals: their product with any size is less than 1.
    """
    rng = random_generator(seed)
    wanted = rng.integers(0, size, 200, endpoint=True) / size
    near = wanted.astype(np.float32)
    tiny = np.float32(2.0) ** rng.uniform(-126, 0, 200).astype(np.float32)
    fractions = np.concatenate(
        [
            rng.uniform(size=200).astype(np.float32),
            near,
            np.nextafter(near, np.float32(0)),
            np.nextafter(near, np.float32(1)),
            tiny,
            np.array([1, 0.15, 0.5, 0.03, 2**-24, 2**-126], np.float32),
            np.nextafter(np.ones(1, np.float32), np.float32(0)),
        ]
    )
    return fractions[(fractions >= np.finfo(np.float32).tiny) & (fractions <= 1)]


def sizes() -> list[int]:
    """Returns block sizes up to 2**40: small, next to powers of two, and random."""
    rng = random_generator(2)
    powers = [2**p + d for p in (16, 24, 29, 31, 32, 33, 39, 40) for d in (-1, 0, 1)]
    random = [int(2.0 ** rng.uniform(1, 40)) for _ in range(20)]
    real = [80 * 8192 * 28672, 256 * 7168 * 2048, 49152 * 576, 4096 * 11008]
    return sorted(min(size, 2**40) for size in {1, 2, 3, 7, *powers, *random, *real})


@pytest.mark.parametrize("size", sizes())
def test_a_traced_fraction_is_the_floor_of_the_exact_product(size: int) -> None:
    fractions = random_fractions(size, seed=size % 1000)
    count = jax.jit(jax.vmap(lambda fraction: limbs.fraction_of(fraction, size)))(
        fractions
    )
    assert len(count) == limbs.limbs_for(size)
    expected = [exact_share(float(fraction), size) for fraction in fractions]
    np.testing.assert_array_equal(join(count), np.array(expected, object))
    # The result of NumPy's float64 product for the same fractions.
    rounded = np.array([max(1, int(size * float(f))) for f in fractions], object)
    assert all(0 <= r - e <= 1 for r, e in zip(rounded, expected, strict=True))
    if size < 2**29:
        np.testing.assert_array_equal(rounded, expected)


@pytest.mark.parametrize("size", [7, 2**24 + 1, 2**31 + 5, 2**40 - 1])
def test_a_traced_float64_fraction_is_numpys(size: int) -> None:
    fractions = random_generator().uniform(size=1000)
    with x64():
        count = jax.jit(jax.vmap(lambda f: limbs.fraction_of(f, size)))(fractions)
    expected = np.array([max(1, int(size * f)) for f in fractions.tolist()], object)
    np.testing.assert_array_equal(join(count), expected)


@pytest.mark.parametrize("size", [1, 10, 1000, 2**33])
def test_traced_fractions_out_of_range_are_clipped(size: int) -> None:
    outside = np.array([0, -0.0, -0.5, -3, 1.5, 2, 1e30, np.inf, -np.inf], np.float32)
    count = jax.jit(jax.vmap(lambda f: limbs.fraction_of(f, size)))(outside)
    assert join(count).tolist() == [1] * 4 + [size] * 4 + [1]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_traced_fraction_of_any_precision_counts_as_its_value(
    dtype: type,
) -> None:
    fraction = jnp.asarray(0.15, dtype)
    count = jax.jit(lambda f: limbs.fraction_of(f, 10**6))(fraction)
    assert join(count) == exact_share(float(fraction), 10**6)


@pytest.mark.parametrize("size", [1, 20, 100, 3 * 2**30, 2**40])
@pytest.mark.parametrize("fraction", [0.15, 0.29, 0.57, 1e-9, 1, 1.0])
def test_a_static_fraction_is_pythons_product(size: int, fraction: float) -> None:
    assert join(limbs.fraction_of(fraction, size)) == max(1, int(size * fraction))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_static_numpy_fraction_is_multiplied_in_float64(kind: type) -> None:
    size, fraction = 2**30 + 12345, kind(0.15)
    expected = int(size * float(fraction))
    assert join(limbs.fraction_of(fraction, size)) == expected
