"""Random selections compared with NumPy's sort.

python -m tests.library.selections --count 100000 --seed 0

The selections cover every kind of number in `awkward`, four dtypes, layouts with and
without block axes, both rules for ties, and static and traced fractions. Each
combination is compiled once.
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
    """Number of selections."""
    seed: int = 0
    """Seed of the random fractions and numbers."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """The static arguments of a compiled selection.

    Attributes:
      shape: shape of the array.
      block_axes: its block axes.
      dtype: a key of `DTYPES`.
      ties: "all" or "exact".
      traced: whether the fraction is an argument rather than a constant.
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
    """Returns a random fraction: often the default, 1, or one that selects very few."""
    likely = [0.15, 0.5, 1.0, 1e-6, 0.29, 0.57]
    return float(rng.choice([*likely, *rng.uniform(1e-6, 1, size=len(likely))]))


def drawn_numbers(
    rng: np.random.Generator, variant: Variant, kinds: dict[str, Callable[..., Any]]
) -> tuple[str, np.ndarray]:
    """Returns an array of one kind of number, mixed with another kind half the time."""
    kind, other = rng.choice([*kinds], size=2)
    x = kinds[kind](rng, variant.shape)
    if rng.uniform() < 0.5:
        strewn = rng.uniform(size=variant.shape) < rng.uniform()
        x = np.where(strewn, kinds[other](rng, variant.shape), x)
    return str(kind), np.asarray(x, DTYPES[variant.dtype])


def selections(
    variant: Variant, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, bool]]:
    """Runs random selections of a variant.

    Yields:
      The kind of number, and whether the mask equals the reference.
    """
    select = functools.partial(
        mofo_jax.top_fraction_mask, block_axes=variant.block_axes, ties=variant.ties
    )
    constant = drawn_fraction(rng)
    compiled = jax.jit(select if variant.traced else lambda x: select(x, constant))
    kinds = numbers(DTYPES[variant.dtype])
    for _ in range(count):
        kind, x = drawn_numbers(rng, variant, kinds)
        # NumPy must compute with the program's float32 fraction.
        fraction = np.float32(drawn_fraction(rng)) if variant.traced else constant
        mask = compiled(x, fraction) if variant.traced else compiled(x)
        expected = selected(x, float(fraction), variant.block_axes, variant.ties)
        yield kind, np.array_equal(np.asarray(mask), expected)


def compare(
    count: int, seed: int, variants: list[Variant] = VARIANTS
) -> tuple[collections.Counter[str], list[str]]:
    """Compares selections with NumPy's, divided equally among the variants.

    Returns:
      The number of selections by kind of number and by dtype, and a line for each
        selection that differs.
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
    """Runs the comparison, prints the result, and returns whether all masks agree."""
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
