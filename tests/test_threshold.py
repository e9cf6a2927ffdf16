"""Selection against NumPy's sort on bit patterns, whatever the numbers are."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from mofo_jax import _search, _threshold
from tests.helpers import DTYPES, blocks, how_many, patterns, random_generator, x64
from tests.helpers import selected as reference_mask

TIES = ("all", "exact")

# Shapes with block axes that every property is tried on: compiled once each.
LAYOUTS = [
    ((), ()),
    ((53,), ()),
    ((5, 40), ()),
    ((5, 40), (0,)),
    ((5, 40), (0, 1)),
    ((3, 4, 50), (0, -1)),
]

select = jax.jit(mofo_jax.top_fraction_mask, static_argnames=("block_axes", "ties"))


def numbers(dtype: np.dtype) -> dict[str, Any]:
    """Returns generators of arrays of every awkward kind, by name."""
    unsigned = np.dtype(f"uint{8 * dtype.itemsize}")
    bits = 8 * dtype.itemsize

    def cast(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(dtype)

    def chosen(*values: float) -> Callable[[np.random.Generator, tuple], np.ndarray]:
        return lambda rng, shape: cast(rng.choice(np.array(values), size=shape))

    def any_bits(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        raw = rng.integers(0, 2**bits - 1, shape, unsigned, endpoint=True)
        return np.asarray(raw, unsigned).view(dtype)

    def subnormal(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        largest = int(patterns(np.asarray(np.finfo(np.float32).tiny).astype(dtype)))
        raw = rng.integers(0, max(largest, 4), shape, unsigned)
        return np.asarray(raw, unsigned).view(dtype)

    def outlier(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        x = rng.normal(size=shape) * 1e-3
        return cast(np.where(rng.uniform(size=shape) < 0.02, 1e4, x))

    def neighbours(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        one = int(patterns(cast(np.ones(()))))
        raw = one + rng.integers(0, 5, shape)
        return np.asarray(raw, unsigned).view(dtype)

    return {
        "normal": lambda rng, shape: cast(rng.normal(size=shape)),
        "heavy-tailed": lambda rng, shape: cast(rng.standard_cauchy(size=shape) ** 3),
        "small integers": lambda rng, shape: cast(rng.integers(-3, 4, size=shape)),
        "constant": chosen(-0.25),
        "two-valued": chosen(1.0, 2.0),
        "zeros": chosen(0.0, -0.0),
        "mostly zero": chosen(*([0.0, -0.0] * 5), 1.0, -2.0),
        "infinite": chosen(math.inf, -math.inf, 1.0, 0.0),
        "not a number": chosen(math.nan, math.inf, 1.0, -0.0),
        "any bits": any_bits,
        "subnormal": subnormal,
        "one outlier": outlier,
        "neighbours": neighbours,
        "every magnitude": lambda rng, shape: cast(
            2.0 ** rng.uniform(-150, 130, size=shape)
        ),
    }


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
def test_a_static_fraction_counts_as_python_does(fraction: float, ties: str) -> None:
    x = random_generator().permutation(100).astype(np.float32) + 1
    mask = mofo_jax.top_fraction_mask(x, fraction, ties=ties)
    assert int(mask.sum()) == how_many(fraction, 100)
    np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("ties", TIES)
def test_more_than_a_word_of_exact_float32_integers(ties: str) -> None:
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


class CountedLoop:
    """A `lax` that remembers how many passes its last loop took."""

    def __init__(self) -> None:
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(jax.lax, name)

    def while_loop(self, unfinished: Callable, narrow: Callable, carry: Any) -> Any:
        """Is `jax.lax.while_loop`, counted."""
        passes, carry = jax.lax.while_loop(
            lambda counted: unfinished(counted[1]),
            lambda counted: (counted[0] + 1, narrow(counted[1])),
            (jnp.int32(0), carry),
        )
        jax.debug.callback(self._remember, passes)
        return carry

    def _remember(self, passes: jax.Array) -> None:
        self.passes = int(passes)


class Counted:
    """Selections, with the number of passes they took."""

    def __init__(self, loop: CountedLoop) -> None:
        self._loop = loop
        self._select = jax.jit(_select_tree)

    def __call__(self, tensors: list[Any], fraction: float) -> tuple[int, list]:
        """Returns how many passes a selection took, and its masks."""
        masks = self._select(tensors, np.float32(fraction))
        jax.effects_barrier()
        return self._loop.passes, masks


def _select_tree(tensors: list[jax.Array], fraction: jax.Array) -> list[jax.Array]:
    competitions = [_threshold.Competition(x, fraction) for x in tensors]
    return _threshold.select(competitions, "all")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    loop = CountedLoop()
    monkeypatch.setattr(_search, "lax", loop)
    jax.clear_caches()  # What was compiled before does not count.
    yield Counted(loop)
    jax.clear_caches()


def hard_inputs(dtype: np.dtype) -> dict[str, np.ndarray]:
    """Returns arrays made to defeat interpolation between counts."""
    rng = random_generator()
    n = 3000
    unsigned = np.dtype(f"uint{8 * dtype.itemsize}")
    top = int(patterns(np.array(math.inf, dtype)))

    def from_patterns(values: Any) -> np.ndarray:
        clipped = np.clip(np.asarray(values, np.float64), 0, top)
        return clipped.astype(unsigned).view(dtype)

    tower = top * np.exp2(-np.exp2(rng.uniform(-6, 6, n)))
    nested = np.concatenate([top / 2 + np.exp2(np.arange(24.0)), np.full(n, top / 2)])
    kinds = {f"of {name}": make(rng, (n,)) for name, make in numbers(dtype).items()}
    return kinds | {
        "a tower of exponentials": from_patterns(tower),
        "nested ever closer": from_patterns(nested),
        "both ends": from_patterns(np.where(rng.uniform(size=n) < 0.5, 1, top - 1)),
        "one at every power": from_patterns(
            np.exp2(np.repeat(np.arange(8 * dtype.itemsize - 1), 40))
        ),
        "ties next to the top": from_patterns(np.full(n, top - 1)),
        "ties in a wide spread": np.concatenate(
            [np.full(n, 0.3).astype(dtype), from_patterns(rng.uniform(0, top, n))]
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_input_takes_more_passes_than_its_patterns_have_bits(
    dtype: str, counted: Counted
) -> None:
    bits = 8 * DTYPES[dtype].itemsize - 1
    with x64(dtype == "float64"):
        for name, x in hard_inputs(DTYPES[dtype]).items():
            for fraction in np.array([1e-4, 0.15, 0.5, 0.999], np.float32).tolist():
                passes, (mask,) = counted([x], fraction)
                assert 1 <= passes <= bits, (name, fraction)
                np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("size", [1000, 300_000])
def test_momenta_as_training_has_them_take_at_most_eight_passes(
    size: int, counted: Counted
) -> None:
    rng = random_generator(size)
    rows = rng.normal(size=(size // 100, 100))
    momenta = {
        "normal": rng.normal(size=size),
        "Laplace": rng.laplace(size=size),
        "cubed Laplace": rng.laplace(size=size) ** 3,
        "Student's t": rng.standard_t(3, size=size),
        "log-normal": rng.lognormal(sigma=2, size=size),
        "rows of different scale": rows * rng.lognormal(1.5, size=(size // 100, 1)),
        "one part zero": rng.normal(size=size) * (rng.uniform(size=size) < 0.3),
    }
    for name, momentum in momenta.items():
        for scale in (1e-9, 1.0):
            for fraction in np.array([0.03, 0.15, 0.5], np.float32).tolist():
                x = (momentum * scale).astype(np.float32).ravel()
                passes, (mask,) = counted([x], fraction)
                assert 1 <= passes <= 8, (name, scale, fraction)
                np.testing.assert_array_equal(mask, reference_mask(x, fraction))


def test_all_tensors_share_one_search(counted: Counted) -> None:
    rng = random_generator()
    tensors = [
        (rng.normal(size=(20, 30)) ** (1 + 2 * (i % 3))).astype(np.float32)
        for i in range(12)
    ]
    fraction = float(np.float32(0.15))
    alone = [counted([x], fraction)[0] for x in tensors]
    passes, masks = counted(tensors, fraction)
    assert passes == max(alone)
    for x, mask in zip(tensors, masks, strict=True):
        np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("fraction", [0.15, 0.5, 1e-7])
@pytest.mark.parametrize("copies", [2**20, 2**22])
def test_blocks_of_more_than_two_to_the_32(copies: int, fraction: float) -> None:
    # As many shards as no machine has, all alike: their counts add up to 2**32 and
    # more, while one shard is small.
    x = np.asarray(random_generator().normal(size=(50, 100)), np.float32)

    def chosen(x: jax.Array, fraction: Any) -> jax.Array:
        competition = _threshold.Competition(x, fraction, (), ("copies",))
        return _threshold.select([competition], "all")[0]

    # A coordinate is chosen with all of its copies, so the share is rounded up.
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
    for fraction in (0.15, jnp.float32(0.15)):
        mask = jax.eval_shape(chosen, abstract, fraction)
        assert mask.shape == shape
        assert mask.dtype == bool
