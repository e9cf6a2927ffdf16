"""Random selections against NumPy's sort, as many as wanted.

python -m tests.library.selections --count 100000 --seed 0

Every kind of number that `awkward` has, in four dtypes, with and without block axes,
both kinds of ties, fractions that are known when it is compiled and fractions that are
not. Each combination is compiled once.
"""

import collections
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
import tyro

import mofo_jax
from tests.helpers import DTYPES, random_generator, selected, x64
from tests.library.awkward import numbers

# Shapes with their block axes.
LAYOUTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((1,), ()),
    ((97,), ()),
    ((300,), ()),
    ((7, 31), ()),
    ((7, 31), (0,)),
    ((4, 40), (1,)),
    ((3, 4, 25), (0, -1)),
    ((2, 3, 5, 7), (1,)),
]
TIES = ("all", "exact")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares random selections with NumPy's."""

    count: int = 100_000
    """How many selections."""
    seed: int = 0
    """Of everything that is drawn."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a selection is compiled for.

    Attributes:
      shape: of the array.
      block_axes: of it.
      dtype: a key of `DTYPES`.
      ties: "all" or "exact".
      traced: whether the fraction is an argument; else it is a constant.
    """

    shape: tuple[int, ...]
    block_axes: tuple[int, ...]
    dtype: str
    ties: str
    traced: bool


VARIANTS = [
    Variant(*layout, dtype, ties, traced)
    for layout, dtype, ties, traced in itertools.product(
        LAYOUTS, DTYPES, TIES, (True, False)
    )
]


def drawn_fraction(rng: np.random.Generator) -> float:
    """Any fraction, the paper's, the largest, and ones that only just choose."""
    likely = [0.15, 0.5, 1.0, 1e-6, 0.29, 0.57]
    return float(rng.choice([*likely, *rng.uniform(1e-6, 1, size=len(likely))]))


def drawn_numbers(
    rng: np.random.Generator, variant: Variant, kinds: dict[str, Callable[..., Any]]
) -> tuple[str, np.ndarray]:
    """An array of one kind of number, half of the time with another kind strewn in."""
    kind, other = rng.choice([*kinds], size=2)
    x = kinds[kind](rng, variant.shape)
    if rng.uniform() < 0.5:
        strewn = rng.uniform(size=variant.shape) < rng.uniform()
        x = np.where(strewn, kinds[other](rng, variant.shape), x)
    return str(kind), np.asarray(x, DTYPES[variant.dtype])


def selections(
    variant: Variant, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, bool]]:
    """Compares some selections of a variant.

    Yields:
      The kind of number, and whether the mask was the reference's.
    """
    select = functools.partial(
        mofo_jax.top_fraction_mask, block_axes=variant.block_axes, ties=variant.ties
    )
    constant = drawn_fraction(rng)
    compiled = jax.jit(select if variant.traced else lambda x: select(x, constant))
    kinds = numbers(DTYPES[variant.dtype])
    for _ in range(count):
        kind, x = drawn_numbers(rng, variant, kinds)
        # As the program is given it: its float32 is what NumPy reckons with too.
        fraction = np.float32(drawn_fraction(rng)) if variant.traced else constant
        mask = compiled(x, fraction) if variant.traced else compiled(x)
        expected = selected(x, float(fraction), variant.block_axes, variant.ties)
        yield kind, np.array_equal(np.asarray(mask), expected)


def compare(
    count: int, seed: int, variants: list[Variant] = VARIANTS
) -> tuple[collections.Counter[str], list[str]]:
    """Compares selections, shared out among variants.

    Returns:
      How many there were of each kind of number, and of each dtype; a line for each
      that was different.
    """
    done: collections.Counter[str] = collections.Counter()
    different: list[str] = []
    with tqdm.tqdm(total=count, unit="selection", mininterval=1) as bar:
        for number, variant in enumerate(variants):
            share = count // len(variants) + (number < count % len(variants))
            rng = random_generator(seed * len(VARIANTS) + number)
            with x64(variant.dtype == "float64"):
                for kind, same in selections(variant, share, rng):
                    done.update([kind, variant.dtype])
                    bar.update()
                    if not same:
                        different.append(f"{variant}, {kind}")
    return done, different


def run(options: Options) -> bool:
    """Compares, says what came out, and returns whether all were the same."""
    began = time.monotonic()
    done, different = compare(options.count, options.seed)
    seconds = time.monotonic() - began
    print(*(f"{name}: {count:,}" for name, count in sorted(done.items())), sep="\n")
    print(*different, sep="\n")
    print(
        f"{options.count:,} selections in {seconds:.0f} s, {len(different)} different "
        f"from NumPy's (seed {options.seed}, jax {jax.__version__})"
    )
    return not different


if __name__ == "__main__":
    prog = "python -m tests.library.selections"
    sys.exit(not run(tyro.cli(Options, prog=prog)))
