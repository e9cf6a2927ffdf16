"""Compares selections with NumPy's, in every form that the library's search can take.

For each form and each rule for ties, one compiled program selects from tensors of
several shapes, blocks and dtypes in a joint search. Its inputs include normal and
heavy-tailed numbers, ties, zeros, subnormal numbers, infinities and NaN.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import mofo_jax
from examples.benchmarks.results import Entry

# Forms are not a public option, so only the library's internals can choose them.
from mofo_jax._selection import search
from mofo_jax._selection.counting import Form
from mofo_jax._selection.select import select

Generator = Callable[[np.random.Generator, tuple[int, ...], np.dtype], np.ndarray]

CHOSEN = "chosen by platform"
FORMS: tuple[str, ...] = (CHOSEN, *get_args(Form))
FRACTIONS = (0.15, 0.01)
Ties = Literal["all", "exact"]
TIES: tuple[Ties, ...] = ("all", "exact")


class Tensor(NamedTuple):
    """The shape of a tensor, the axes that index its blocks, and its dtype."""

    shape: tuple[int, ...]
    block_axes: tuple[int, ...] = ()
    dtype: str = "float32"


# A vector, a matrix, and an attention kernel with separate heads, each of them one
# block; layers stacked; a block for each layer and head.
LARGE: dict[str, Tensor] = {
    "vector": Tensor((97,)),
    "matrix": Tensor((2048, 2000)),
    "heads": Tensor((1024, 8, 64)),
    "layers": Tensor((12, 512, 200), (0,)),
    "layers and heads": Tensor((3, 400, 5, 64), (0, 2)),
    "bfloat16 matrix": Tensor((1024, 2000), (), "bfloat16"),
    "bfloat16 layers": Tensor((12, 512, 200), (0,), "bfloat16"),
    "float16 matrix": Tensor((1024, 2000), (), "float16"),
}
SMALL: dict[str, Tensor] = {
    "matrix": Tensor((40, 15)),
    "layers and heads": Tensor((2, 5, 3, 8), (0, 2)),
    "bfloat16 matrix": Tensor((40, 15), (), "bfloat16"),
}


class Trial(NamedTuple):
    """Numbers to select from, and NumPy's selections.

    Attributes:
      kind: the kind of numbers, a key of `KINDS`.
      fraction: the share of each block to select.
      tree: the numbers, by tensor.
      expected: for each rule for ties, masks of the selected nonzero numbers.
    """

    kind: str
    fraction: float
    tree: dict[str, np.ndarray]
    expected: dict[str, dict[str, np.ndarray]]


def measure(form: str, tensors: Mapping[str, Tensor], trials: Sequence[Trial]) -> Entry:
    """Compares selections of one form with NumPy's.

    Args:
      form: one of `FORMS`.
      tensors: the tensors to select from, by name.
      trials: the result of `make_trials`.

    Returns:
      `selections`, the number of compared masks; `different`, a description of each
      mask that differs; and `compile_seconds`, by rule for ties.

    Raises:
      jax.errors.JaxRuntimeError: the compiler does not support the form.
    """
    programs = {ties: _compiled(form, ties, tensors) for ties in TIES}
    count, different = 0, []
    for kind, fraction, tree, expected in tqdm.tqdm(
        trials, desc=f"selections, {form}", unit="tree"
    ):
        for ties, (program, _) in programs.items():
            kept = program(np.float32(fraction), tree)
            for name, mask in expected[ties].items():
                count += 1
                if not np.array_equal(_patterns(kept[name]) != 0, mask):
                    different.append(f"{name}, {kind}, {fraction}, {ties}")
    seconds = {ties: taken for ties, (_, taken) in programs.items()}
    return {"selections": count, "different": different, "compile_seconds": seconds}


def differences(
    masks: Mapping[str, Any],
    magnitudes: Mapping[str, Any],
    block_axes: Mapping[str, tuple[int, ...]],
    fraction: float,
) -> list[str]:
    """Returns the tensors whose moved coordinates are not those that NumPy selects.

    Args:
      masks: masks of the coordinates that moved.
      magnitudes: the ranked numbers; zeros never move.
      block_axes: the block axes of each tensor.
      fraction: the share of each block to select.
    """
    found = []
    for name, mask in masks.items():
        x = np.asarray(magnitudes[name])
        expected = selected(x, fraction, block_axes[name])["all"] & (_patterns(x) != 0)
        if not np.array_equal(np.asarray(mask), expected):
            found.append(name)
    return found


def selected(
    x: np.ndarray, fraction: float, block_axes: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Returns the masks of the largest magnitudes of each block, for both `TIES`.

    Thresholds are found by NumPy's partition of the bits without the signs.
    """
    first = range(len(block_axes))
    moved = np.moveaxis(_patterns(x), block_axes, first)
    rows = moved.reshape(math.prod(moved.shape[: len(block_axes)]), -1)
    size = rows.shape[1]
    k = max(1, int(size * fraction))
    threshold = np.partition(rows, size - k, axis=1)[:, size - k : size - k + 1]
    above, tied = rows > threshold, rows == threshold
    missing = k - above.sum(axis=1, keepdims=True)
    masks = {"all": above | tied, "exact": above | tied & (tied.cumsum(1) <= missing)}
    return {
        ties: np.moveaxis(mask.reshape(moved.shape), first, block_axes)
        for ties, mask in masks.items()
    }


def _patterns(x: Any) -> np.ndarray:
    """Returns the bits without the sign, which have the order of the magnitudes."""
    x = np.asarray(x)
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    return x.view(unsigned) & np.array(np.iinfo(unsigned).max >> 1, unsigned)


def make_trials(tensors: Mapping[str, Tensor]) -> Iterator[Trial]:
    """Yields numbers of every kind for the tensors, with NumPy's selections."""
    for kind, generate in KINDS.items():
        rng = np.random.default_rng(0)
        with np.errstate(over="ignore"):
            tree = {
                name: generate(rng, tensor.shape, np.dtype(tensor.dtype))
                for name, tensor in tensors.items()
            }
        for fraction in FRACTIONS:
            expected: dict[str, dict[str, np.ndarray]] = {ties: {} for ties in TIES}
            for name, x in tree.items():
                # The program is given the fraction in float32.
                share = float(np.float32(fraction))
                masks = selected(x, share, tensors[name].block_axes)
                for ties in TIES:
                    expected[ties][name] = masks[ties] & (_patterns(x) != 0)
            yield Trial(kind, fraction, tree, expected)


def _cast(draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> Generator:
    return lambda rng, shape, dtype: draw(rng, shape).astype(dtype)


def _any_bits(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    unsigned = np.dtype(f"uint{8 * dtype.itemsize}")
    most = np.iinfo(unsigned).max
    return rng.integers(0, most, shape, unsigned, endpoint=True).view(dtype)


def _subnormal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    least_normal = float(jnp.finfo(dtype).smallest_normal)
    return (rng.normal(size=shape) * least_normal / 8).astype(dtype)


KINDS: dict[str, Generator] = {
    "normal": _cast(lambda rng, shape: rng.normal(size=shape)),
    "heavy-tailed": _cast(lambda rng, shape: rng.standard_cauchy(size=shape) ** 3),
    "small integers": _cast(lambda rng, shape: rng.integers(-3, 4, size=shape)),
    "mostly zero": _cast(
        lambda rng, shape: rng.choice([*[0.0, -0.0] * 20, 1.0, -2.0], size=shape)
    ),
    "infinite": _cast(
        lambda rng, shape: rng.choice([math.nan, math.inf, -math.inf, 1.0], size=shape)
    ),
    "subnormal": _subnormal,
    "any bits": _any_bits,
}


def _compiled(
    form: str, ties: Ties, tensors: Mapping[str, Tensor]
) -> tuple[Callable[..., Any], float]:
    """Compiles `(fraction, tree) -> tree` in a form, and returns it and the seconds."""
    axes = {name: tensor.block_axes for name, tensor in tensors.items()}

    def keep(fraction: jax.Array, tree: Any) -> Any:
        kept = mofo_jax.momentum_filter(
            optax.identity(),
            update_fraction=fraction,
            block_axes=axes,
            score="gradient",
            ties=ties,
        )
        return kept.update(tree, kept.init(tree))[0]

    tree = {
        name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
        for name, tensor in tensors.items()
    }
    start = time.perf_counter()
    with _forced(form):
        compiled = jax.jit(keep).lower(jax.ShapeDtypeStruct((), jnp.float32), tree)
        return compiled.compile(), time.perf_counter() - start


@contextlib.contextmanager
def _forced(form: str) -> Iterator[None]:
    """Makes the library trace its search in the given form, on any platform."""
    # Earlier traces, in another form, would be reused.
    traced: Any = select
    traced.clear_cache()
    if form == CHOSEN:
        yield
        return
    try:
        with mock.patch.object(search, "in_best_form", lambda compute: compute(form)):
            yield
    finally:
        traced.clear_cache()
