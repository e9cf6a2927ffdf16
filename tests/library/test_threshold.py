"""Selection against NumPy's sort of bit patterns, for all kinds of numbers."""

import math
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from mofo_jax._selection import select as selection
from mofo_jax._selection.limbs import fraction_of
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from tests.helpers import DTYPES, blocks, how_many, patterns, random_generator, x64
from tests.helpers import selected as reference_mask
from tests.library.awkward import numbers

TIES = ("all", "exact")

# Shapes and block axes for the property tests; each is compiled once.
LAYOUTS = [
    ((), ()),
    ((53,), ()),
    ((5, 40), ()),
    ((5, 40), (0,)),
    ((5, 40), (0, 1)),
    ((3, 4, 50), (0, -1)),
]

select = jax.jit(mofo_jax.top_fraction_mask, static_argnames=("block_axes", "ties"))


def check(x: np.ndarray, fraction: Any, axes: tuple[int, ...], ties: str) -> None:
    """Compares the compiled selection with the reference."""
    with x64(x.dtype == np.float64):
        mask = np.asarray(select(x, fraction, block_axes=axes, ties=ties))
    expected = reference_mask(x, float(fraction), axes, ties)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_kind_of_numbers(
    layout: tuple[tuple, tuple], dtype: str, ties: str
) -> None:
    shape, axes = layout
    rng = random_generator()
    for kind in numbers(DTYPES[dtype]).values():
        for fraction in (0.03, 0.15, 0.5, 0.9, 1.0, rng.uniform(1e-6, 1)):
            check(kind(rng, shape), np.float32(fraction), axes, ties)


@pytest.mark.parametrize("dtype", DTYPES)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150)
def test_any_bit_patterns(dtype: str, data: st.DataObject) -> None:
    floating = DTYPES[dtype]
    unsigned = np.dtype(f"uint{8 * floating.itemsize}")
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    few = np.array(special, floating).view(unsigned).tolist()
    largest = int(np.iinfo(unsigned).max)
    elements = st.one_of(
        st.sampled_from([*few, 1, largest, largest >> 1]), st.integers(0, largest)
    )
    shape, axes = data.draw(st.sampled_from(LAYOUTS))
    bits = data.draw(hnp.arrays(unsigned, shape, elements=elements))
    fraction = data.draw(st.floats(2**-20, 1, width=32))
    ties = data.draw(st.sampled_from(TIES))
    check(bits.view(floating), np.float32(fraction), axes, ties)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=25)
def test_any_shape_and_block_axes(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    axes = tuple(
        data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True))
        if shape
        else ()
    )
    x = np.asarray(random_generator().integers(-4, 5, size=shape), np.float32)
    fraction = data.draw(st.floats(0.01, 1))
    ties = data.draw(st.sampled_from(TIES))
    mask = mofo_jax.top_fraction_mask(x, fraction, block_axes=axes, ties=ties)
    np.testing.assert_array_equal(mask, reference_mask(x, fraction, axes, ties))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("fraction", [0.15, 0.29, 0.57, 1e-6, 1])
def test_static_fractions_select_as_many_as_python_computes(
    fraction: float, ties: str
) -> None:
    x = random_generator().permutation(100).astype(np.float32) + 1
    mask = mofo_jax.top_fraction_mask(x, fraction, ties=ties)
    assert int(mask.sum()) == how_many(fraction, 100)
    np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("ties", TIES)
def test_counts_beyond_the_exact_integers_of_float32(ties: str) -> None:
    # A float32 count would be wrong here: 2**24 + 2**21 coordinates.
    size = 2**24 + 2**21
    x = np.zeros(size, np.float16)
    x[3::9] = 1.0
    x[5::9] = 0.5
    fraction = 0.15
    mask = np.asarray(select(x, fraction, ties=ties))
    k = int(size * float(np.float32(fraction)))
    expected = x > 0
    if ties == "exact":
        tied = np.flatnonzero(x == 0.5)
        expected = x == 1
        expected[tied[: k - int(expected.sum())]] = True
        assert int(expected.sum()) == k
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("ties", TIES)
def test_complex_numbers_compete_by_their_modulus(ties: str) -> None:
    rng = random_generator()
    x = rng.normal(size=(6, 50)) + 1j * rng.normal(size=(6, 50))
    x = x.astype(np.complex64)
    mask = mofo_jax.top_fraction_mask(x, 0.2, block_axes=(0,), ties=ties)
    expected = reference_mask(np.array(jnp.abs(x)), 0.2, (0,), ties)
    np.testing.assert_array_equal(mask, expected)


def test_zero_ranks_like_any_other_magnitude() -> None:
    x = jnp.array([0.0, -0.0, 0.0, 1.0])
    assert mofo_jax.top_fraction_mask(x, 0.5).tolist() == [True] * 4
    exact = mofo_jax.top_fraction_mask(x, 0.5, ties="exact")
    assert exact.tolist() == [True, False, False, True]


def test_not_a_number_ranks_above_infinity() -> None:
    x = jnp.array([jnp.inf, 3.0, -jnp.nan, -jnp.inf])
    assert mofo_jax.top_fraction_mask(x, 0.25).tolist() == [False, False, True, False]


def test_empty_arrays_give_empty_masks() -> None:
    mask = mofo_jax.top_fraction_mask(jnp.zeros((0, 3)), 0.5, block_axes=(1,))
    assert mask.shape == (0, 3)
    assert mask.dtype == bool


def test_no_blocks_have_no_thresholds() -> None:
    found = mofo_jax.magnitude_threshold(jnp.zeros((0, 4)), 2, block_axes=(0,))
    assert found.shape == (0, 1) and found.dtype == jnp.float32


def test_vmap_is_a_block_axis() -> None:
    x = jnp.asarray(random_generator().normal(size=(4, 30)), jnp.float32)
    mapped = jax.vmap(lambda row: mofo_jax.top_fraction_mask(row, 0.2))(x)
    by_axis = mofo_jax.top_fraction_mask(x, 0.2, block_axes=(0,))
    np.testing.assert_array_equal(mapped, by_axis)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS[1::2], ids=str)
def test_the_threshold_is_the_kth_magnitude(
    layout: tuple[tuple, tuple], dtype: str
) -> None:
    shape, axes = layout
    rng = random_generator()
    size = math.prod(
        n for i, n in enumerate(shape) if i - len(shape) not in axes and i not in axes
    )
    find = jax.jit(mofo_jax.magnitude_threshold, static_argnames=("k", "block_axes"))
    for name, kind in numbers(DTYPES[dtype]).items():
        x = kind(rng, shape)
        k = {"normal": 1, "zeros": size}.get(name, 1 + size // 3)
        k = k if dtype == "float32" else 1 + size // 3
        with x64(dtype == "float64"):
            threshold = np.asarray(find(x, k=k, block_axes=axes))
        assert threshold.dtype == x.dtype
        kept = [i in axes or i - len(shape) in axes for i in range(len(shape))]
        assert threshold.shape == tuple(
            n if keep else 1 for n, keep in zip(shape, kept, strict=True)
        )
        for index in blocks(shape, axes):
            here = tuple(0 if isinstance(i, slice) else i for i in index)
            ranked = np.sort(np.atleast_1d(patterns(x[index])).ravel())[::-1]
            assert patterns(threshold[here]) == ranked[k - 1]


def test_the_threshold_of_complex_numbers_is_real() -> None:
    threshold = mofo_jax.magnitude_threshold(jnp.array([3 + 4j, 1j, -2]), 1)
    assert threshold.dtype == jnp.float32
    assert threshold.tolist() == [5.0]


@pytest.mark.parametrize("fraction", [0.15, 0.5, 1e-7])
@pytest.mark.parametrize("copies", [2**20, 2**22])
def test_blocks_of_more_than_two_to_the_32(copies: int, fraction: float) -> None:
    # More identical shards than any machine has, so that counts reach 2**32 although
    # each shard is small.
    x = np.asarray(random_generator().normal(size=(50, 100)), np.float32)

    def chosen(x: jax.Array, fraction: Any) -> jax.Array:
        tensor = rank_magnitudes(x, (), ("copies",))
        contest = Contest((tensor,), fraction_of(fraction, tensor.block_size))
        ((mask,),) = selection.select([contest], "all")
        return mask

    # A coordinate is selected in all of its copies, so the count is rounded up.
    k = math.ceil(int(float(np.float32(fraction)) * (x.size * copies)) / copies)
    ranked = np.sort(np.abs(x).ravel())[::-1]
    for given in (float(np.float32(fraction)), jnp.float32(fraction)):
        mask = jax.jit(
            jax.vmap(
                chosen,
                in_axes=None,
                out_axes=None,
                axis_name="copies",
                axis_size=copies,
            )
        )(x, given)
        np.testing.assert_array_equal(mask, np.abs(x) >= ranked[k - 1])


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2**15, 2**16), ()),
        ((2**16, 2**16), ()),
        ((80, 8192, 28672), ()),
        ((80, 8192, 28672), (0,)),
        ((256, 7168, 2048), (0,)),
        ((2**20, 2**20), ()),
        ((2**31 - 1,), ()),
    ],
    ids=str,
)
def test_tensors_too_large_for_this_machine_are_traced(
    shape: tuple[int, ...], axes: tuple[int, ...], ties: str
) -> None:
    def chosen(x: jax.Array, fraction: Any) -> jax.Array:
        return mofo_jax.top_fraction_mask(x, fraction, block_axes=axes, ties=ties)

    abstract = jax.ShapeDtypeStruct(shape, jnp.float32)
    size = math.prod(n for i, n in enumerate(shape) if i not in axes)
    if ties == "exact" and size >= 2**31:
        with pytest.raises(ValueError, match=r"2\*\*31 .* of \d+: `block_axes`"):
            jax.eval_shape(chosen, abstract, 0.15)
        return
    for fraction in (0.15, jnp.float32(0.15)):
        mask = jax.eval_shape(chosen, abstract, fraction)
        assert mask.shape == shape
        assert mask.dtype == bool
