"""The number of passes that the joint search takes, for difficult numbers."""

import functools
import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from mofo_jax._selection import limbs, search, ties
from mofo_jax._selection.counting import Form
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from tests.helpers import DTYPES, patterns, random_generator, x64
from tests.helpers import selected as reference_mask
from tests.library.awkward import numbers


@functools.partial(jax.jit, static_argnames="form")
def counted(
    tensors: list[Any], fraction: jax.Array, form: Form = "operands"
) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the number of passes of a selection, and its masks."""
    contests = []
    for x in tensors:
        tensor = rank_magnitudes(x, ())
        wanted = limbs.fraction_of(fraction, tensor.block_size)
        contests.append(Contest((tensor,), wanted))
    found = search._search(contests, form)
    masks = ties.masks_with_ties(contests, found.brackets)
    return found.passes, [mask for (mask,) in masks]


def count(
    tensors: list[Any], fraction: float, form: Form = "operands"
) -> tuple[int, list[Any]]:
    """Returns the same for a traced fraction."""
    passes, masks = counted(tensors, jnp.float32(fraction), form)
    return int(passes), masks


def hard_inputs(dtype: np.dtype) -> dict[str, np.ndarray]:
    """Returns arrays that are designed to defeat interpolation between counts."""
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


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_input_takes_more_passes_than_its_patterns_have_bits(
    dtype: str, form: Form
) -> None:
    bits = 8 * DTYPES[dtype].itemsize - 1
    with x64(dtype == "float64"):
        for name, x in hard_inputs(DTYPES[dtype]).items():
            x = x.reshape(-1, 8)
            for fraction in np.array([1e-4, 0.15, 0.5, 0.999], np.float32).tolist():
                passes, (mask,) = count([x], fraction, form)
                assert passes <= bits, (name, fraction)
                np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("size", [1000, 300_000])
def test_realistic_momenta_take_at_most_eight_passes(size: int) -> None:
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
                passes, (mask,) = count([x], fraction)
                assert 1 <= passes <= 8, (name, scale, fraction)
                np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("dying", [0.05, 0.1])
def test_a_wrong_first_guess_costs_few_passes(dying: float) -> None:
    rng = random_generator()
    n = 200_000
    # A few coordinates close to zero lower the mean, and the first guess with it.
    scales = np.where(rng.uniform(size=n) < dying, 1e-3, 1.0)
    x = (scales * rng.normal(size=n)).astype(np.float32)
    passes, (mask,) = count([x], 0.15)
    assert 3 <= passes <= 8
    np.testing.assert_array_equal(mask, reference_mask(x, np.float32(0.15)))


def test_all_tensors_share_one_search() -> None:
    rng = random_generator()
    tensors = [
        (rng.normal(size=(20, 30)) ** (1 + 2 * (i % 3))).astype(np.float32)
        for i in range(12)
    ]
    fraction = float(np.float32(0.15))
    alone = [count([x], fraction)[0] for x in tensors]
    passes, masks = count(tensors, fraction)
    assert passes == max(alone)
    for x, mask in zip(tensors, masks, strict=True):
        np.testing.assert_array_equal(mask, reference_mask(x, fraction))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_public_function_returns_the_number_of_passes(dtype: str) -> None:
    rng = random_generator()
    x = rng.laplace(size=(3, 70, 500)).astype(DTYPES[dtype])
    whole = int(mofo_jax.selection_passes(x, 0.15))
    assert whole == count([x], 0.15)[0]
    blocks = int(mofo_jax.selection_passes(x, 0.15, block_axes=(0,)))
    # All blocks are counted in the same passes.
    assert blocks == max(count([x], 0.15)[0] for x in x)


def test_narrow_momenta_take_fewer_passes() -> None:
    x = random_generator().normal(size=300_000) ** 3
    passes = {name: count([x.astype(DTYPES[name])], 0.15)[0] for name in NARROW}
    assert passes["bfloat16"] <= passes["float16"] <= passes["float32"]
    assert passes["bfloat16"] < passes["float32"]


NARROW = ("float32", "float16", "bfloat16")
