"""How many passes the joint search takes, whatever the numbers are."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mofo_jax import _search, _threshold
from tests.awkward import numbers
from tests.helpers import DTYPES, patterns, random_generator, x64
from tests.helpers import selected as reference_mask


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
