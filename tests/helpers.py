"""A zoo of trees, and MoFO in NumPy's float64 as an independent reference.

The zoo has every kind of leaf. The reference follows the paper's algorithm, one tensor
at a time and with a sort, and shares no code with the implementation.
"""

import contextlib
import functools
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

# Tests in folders of this name run on eight devices, in a separate process that
# `test_eight_devices.py` starts.
EIGHT_DEVICES_FOLDER = "eight_devices"
EIGHT_DEVICES_FLAG = "--xla_force_host_platform_device_count=8"
# For processes that compile much and compute little.
UNOPTIMIZED_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
}


def free_port() -> int:
    """Returns a port of the loopback interface that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def x64(enabled: bool = True) -> Iterator[None]:
    """Enables or disables JAX's 64-bit types temporarily."""
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def patterns(x: np.ndarray) -> np.ndarray:
    """Returns magnitudes as unsigned integers of the same order, NaN above infinity."""
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    return x.view(unsigned) & unsigned.type(np.iinfo(unsigned).max >> 1)


def blocks(shape: Sequence[int], block_axes: Sequence[int]) -> Iterator[tuple]:
    """Yields the index of each block of a tensor."""
    lengths = [shape[axis] for axis in block_axes]
    for position in np.ndindex(*lengths):
        index: list[Any] = [slice(None)] * len(shape)
        for axis, place in zip(block_axes, position, strict=True):
            index[axis] = place
        yield tuple(index)


def how_many(fraction: float, size: int) -> int:
    """Returns the number of coordinates in a fraction of a block of `size`."""
    return max(1, int(size * fraction))


def selected(
    x: np.ndarray,
    fraction: float,
    block_axes: Sequence[int] = (),
    ties: str = "all",
) -> np.ndarray:
    """Returns the mask of the largest magnitudes of each block, by sorting."""
    x = np.asarray(x)
    mask = np.zeros(x.shape, bool)
    for index in blocks(x.shape, block_axes):
        block = np.atleast_1d(x[index])
        if block.size == 0:
            continue
        ranked = patterns(block).ravel().astype(np.uint64)
        # Descending; equal magnitudes are in row-major order.
        order = np.lexsort((np.arange(ranked.size), ranked.max() - ranked))
        k = how_many(fraction, block.size)
        if ties == "all":
            chosen = ranked >= ranked[order[k - 1]]
        else:
            chosen = np.zeros(ranked.size, bool)
            chosen[order[:k]] = True
        mask[index] = chosen.reshape(np.shape(x[index]))
    return mask


class Settings(NamedTuple):
    """The settings of one tensor's trajectory; schedules count steps from 0."""

    learning_rate: float | Callable[[int], float] = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    update_fraction: float | Callable[[int], float] = 0.15
    block_axes: tuple[int, ...] = ()
    dense: bool = False
    ties: str = "all"
    decay: str = "selected"


def trajectory(
    start: np.ndarray, gradients: Sequence[np.ndarray], settings: Settings
) -> list[np.ndarray]:
    """Returns a tensor after each step of MoFO, in float64."""
    theta = np.asarray(start, np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    b1, b2 = settings.b1, settings.b2
    steps = []
    for t, gradient in enumerate(gradients, start=1):
        g = np.asarray(gradient, np.float64)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if settings.nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        direction = m_hat / (np.sqrt(v_hat + settings.eps_root) + settings.eps)
        decay = settings.weight_decay * theta
        fraction = _at(settings.update_fraction, t - 1)
        if settings.dense or (not callable(settings.update_fraction) and fraction == 1):
            moves = np.ones(theta.shape, bool)
        else:
            moves = selected(m, fraction, settings.block_axes, settings.ties) & (m != 0)
        decays = moves if settings.decay == "selected" else np.ones(theta.shape, bool)
        change = np.where(moves, direction, 0) + np.where(decays, decay, 0)
        theta = theta - _at(settings.learning_rate, t - 1) * change
        steps.append(theta)
    return steps


def _at(value: float | Callable[[int], float], count: int) -> float:
    return float(value(count)) if callable(value) else value


def random_generator(seed: int = 0) -> np.random.Generator:
    """Returns a generator with a fixed seed."""
    return np.random.default_rng(seed)


# Every kind of leaf that Optax supports, by the shape of its arrays.
ZOO: dict[str, Any] = {
    "matrix": (12, 10),
    "vector": (17,),
    "scalar": (),
    "empty": (0, 3),
    "tiny": (3,),
    "one": (1, 1),
    "stacked": (4, 5, 6),
    "heads": (3, 8, 4),
    "norm_scale": (16,),
    "nothing": None,
    "masked": optax.MaskedNode(),
    "nested": {"list": [(7,), None, (2, 9)], "deep": {"er": (5, 3, 2)}},
}

# Blocks are layers, and heads in layers.
ZOO_BLOCK_AXES: dict[str, Any] = {
    **{name: () for name in ZOO if ZOO[name] is not None and name != "masked"},
    "stacked": (0,),
    "heads": (0, -1),
    "nothing": None,
    "masked": optax.MaskedNode(),
    "nested": {"list": [(), None, (1,)], "deep": ()},
}


def is_shape(node: Any) -> bool:
    """Returns whether a node of the zoo stands for an array."""
    return type(node) is tuple and all(isinstance(n, int) for n in node)


def map_shapes(function: Callable[..., Any], *trees: Any) -> Any:
    """Maps a function over the shapes of zoos."""
    return jax.tree.map(function, *trees, is_leaf=is_shape)


DECAYED = map_shapes(lambda shape: len(shape) > 1, ZOO)


def zoo_params(seed: int = 0) -> Any:
    """Returns the zoo's parameters as float64 arrays of NumPy."""
    rng = random_generator(seed)
    return map_shapes(lambda shape: np.asarray(rng.normal(size=shape)), ZOO)


def zoo_gradients(steps: int, seed: int = 1) -> list[Any]:
    """Returns gradients for each step, which are heavy-tailed and have zeros and ties.

    The second half of each last axis partly repeats the first with opposite signs, so
    that equal momenta compete; the first coordinates have no gradient for some steps.
    """
    rng = random_generator(seed)

    def gradient(shape: tuple[int, ...], step: int) -> np.ndarray:
        g = np.asarray(rng.normal(size=shape) ** 3)
        if shape and shape[-1] >= 4:
            quarter = shape[-1] // 4
            g[..., -quarter:] = -g[..., :quarter]
            g[..., quarter] = 0.0 if step < 10 else g[..., quarter]
        return g

    return [
        map_shapes(lambda shape, step=step: gradient(shape, step), ZOO)
        for step in range(steps)
    ]


def float32_zoo(steps: int) -> tuple[Any, list[Any]]:
    """Returns the zoo's parameters and gradients in float32."""
    cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    return cast(zoo_params()), [cast(g) for g in zoo_gradients(steps)]


def few(steps: int, dtype: Any = "float32") -> tuple[Any, list[Any]]:
    """Returns a few of the zoo's parameters and gradients, which compile faster."""
    params, gradients = jax.tree.map(lambda x: x.astype(dtype), float32_zoo(steps))
    names = ("matrix", "heads", "scalar", "empty", "nothing")
    return (
        {name: params[name] for name in names},
        [{name: gradient[name] for name in names} for gradient in gradients],
    )


def gradients_like(params: Any, steps: int, seed: int = 0) -> list[Any]:
    """Returns normally distributed gradients, one tree per step."""
    rng = random_generator(seed)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        for _ in range(steps)
    ]


def assert_same_bits(actual: Any, desired: Any) -> None:
    """Checks that two trees have equal structure, dtypes, shapes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, d = np.asarray(a), np.asarray(d)
        assert (a.dtype, a.shape) == (d.dtype, d.shape)
        np.testing.assert_array_equal(
            np.frombuffer(a.tobytes(), np.uint8), np.frombuffer(d.tobytes(), np.uint8)
        )


def assert_raises(
    call: Callable[[], Any], words: str, error: type[Exception] = ValueError
) -> None:
    """Checks that a call raises an error, by default a ValueError, with these words."""
    with pytest.raises(error, match=re.escape(words)):
        call()


def types(tree: Any) -> Any:
    """Returns the shape and dtype of each leaf of a tree."""
    return jax.tree.map(
        lambda leaf: (np.shape(leaf), jax.numpy.result_type(leaf)), tree
    )


def run(
    optimizer: optax.GradientTransformation,
    params: Any,
    gradients: Sequence[Any],
    jit: bool = True,
) -> tuple[list[Any], list[Any], Any]:
    """Returns the parameters and updates after each step, and the last state."""
    update = jax.jit(optimizer.update) if jit else optimizer.update
    state = optimizer.init(params)
    all_params, all_updates = [], []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        all_params.append(params)
        all_updates.append(updates)
    return all_params, all_updates, state
