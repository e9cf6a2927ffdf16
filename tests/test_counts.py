"""Counts in several words against Python's integers."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mofo_jax._selection import limbs
from tests.helpers import random_generator, x64

WORDS = [np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.uint32)]


def split(values: np.ndarray, words: int, word: np.dtype) -> limbs.Count:
    """Returns an array of Python's integers as words."""
    bits = 8 * word.itemsize
    return tuple(
        jnp.asarray(((values >> (bits * i)) & (2**bits - 1)).astype(word))
        for i in range(words)
    )


def join(count: limbs.Count) -> np.ndarray:
    """Returns words as an array of Python's integers."""
    bits = 8 * count[0].dtype.itemsize
    return sum(np.asarray(w).astype(object) << (bits * i) for i, w in enumerate(count))


def interesting(words: int, word: np.dtype) -> np.ndarray:
    """Returns counts near every carry, and random ones."""
    bits = 8 * word.itemsize
    edges = {
        min(max((1 << shift) + offset, 0), (1 << (bits * words)) - 1)
        for shift in range(bits * words + 1)
        for offset in (-2, -1, 0, 1)
    }
    rng = random_generator()
    random = {
        int.from_bytes(rng.bytes(words * word.itemsize), "little") for _ in range(60)
    }
    return np.array(sorted(edges | random), object)


@pytest.mark.parametrize("word", WORDS, ids=str)
@pytest.mark.parametrize("words", [1, 2, 3])
def test_comparisons_and_differences_of_all_pairs(words: int, word: np.dtype) -> None:
    values = interesting(words, word)
    a, b = (grid.ravel() for grid in np.meshgrid(values, values))
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    counts_a, counts_b = split(a, words, word), split(b, words, word)
    np.testing.assert_array_equal(limbs.at_least(counts_a, counts_b), a >= b)
    np.testing.assert_array_equal(limbs.equal(counts_a, counts_b), a == b)
    difference = limbs.subtract(split(larger, words, word), split(smaller, words, word))
    np.testing.assert_array_equal(join(difference), larger - smaller)
    assert all(w.dtype == word for w in difference)


def test_where_chooses_word_by_word() -> None:
    word = np.dtype(np.uint8)
    a, b = np.array([300, 5], object), np.array([7, 511], object)
    chosen = limbs.where(jnp.array([True, False]), split(a, 2, word), split(b, 2, word))
    assert join(chosen).tolist() == [300, 511]


@pytest.mark.parametrize("word", WORDS, ids=str)
@pytest.mark.parametrize("words_in", [1, 2])
@pytest.mark.parametrize("terms", [1, 2, 3, 17, 63])
def test_sums_are_exact(word: np.dtype, words_in: int, terms: int) -> None:
    rng = random_generator(terms)
    size = words_in * word.itemsize
    columns = 300
    values = np.array(
        [
            [int.from_bytes(rng.bytes(size), "little") for _ in range(columns)]
            for _ in range(terms)
        ],
        object,
    )
    values[:, 0] = (1 << (8 * size)) - 1  # The largest sum there is.
    words = limbs.words_needed(terms * ((1 << (8 * size)) - 1), word)
    total = limbs.sum_exactly(
        split(values, words_in, word),
        lambda w: jnp.sum(w, axis=0, dtype=w.dtype),
        terms,
        words,
    )
    assert len(total) == words
    np.testing.assert_array_equal(join(total), values.sum(axis=0))


def test_a_sum_that_fits_in_one_word_is_a_plain_sum() -> None:
    values = split(np.arange(200).astype(object), 1, np.dtype(np.uint32))
    (total,) = limbs.sum_exactly(values, lambda w: jnp.sum(w, dtype=w.dtype), 200, 1)
    assert total == 199 * 100


def test_too_many_terms_for_a_word_are_refused() -> None:
    count = split(np.zeros(256, object), 1, np.dtype(np.uint8))
    with pytest.raises(ValueError, match="cannot sum 256 counts with words of 8 bits"):
        limbs.sum_exactly(count, lambda w: jnp.sum(w, dtype=w.dtype), 256, 2)


@pytest.mark.parametrize(
    ("largest", "words"),
    [(0, 1), (1, 1), (2**32 - 1, 1), (2**32, 2), (2**64 - 1, 2), (2**64, 3)],
)
def test_words_needed(largest: int, words: int) -> None:
    assert limbs.words_needed(largest) == words
    assert join(limbs.constant(largest, words)) == largest


def test_to_float_rounds_to_the_nearest_float32_or_its_neighbour() -> None:
    values = interesting(2, np.dtype(np.uint32))
    rounded = np.asarray(limbs.to_float(split(values, 2, np.dtype(np.uint32))))
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
    assert len(count) == limbs.words_needed(size)
    expected = [exact_share(float(fraction), size) for fraction in fractions]
    np.testing.assert_array_equal(join(count), np.array(expected, object))
    # What NumPy's float64 makes of the same fractions.
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
