"""The same filter with thresholds from `lax.top_k` or a sort, for comparison."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

KthLargest = Callable[[jax.Array, int], jax.Array]


def kth_by_top_k(magnitudes_BxN: jax.Array, k: int) -> jax.Array:
    """Returns the k-th largest of each row, [B, 1], by `lax.top_k`."""
    return lax.top_k(magnitudes_BxN, k)[0][:, k - 1 :]


def kth_by_sort(magnitudes_BxN: jax.Array, k: int) -> jax.Array:
    """Returns the k-th largest of each row, [B, 1], by `jnp.sort`."""
    size = magnitudes_BxN.shape[1]
    return jnp.sort(magnitudes_BxN, axis=1)[:, size - k : size - k + 1]


def mask(
    x: jax.Array,
    fraction: float,
    kth_largest: KthLargest,
    block_axes: tuple[int, ...] = (),
) -> jax.Array:
    """Marks the largest magnitudes of each block, like `mofo_jax.top_fraction_mask`.

    Args:
      x: a floating-point array.
      fraction: the share of each block to mark.
      kth_largest: the function that finds the threshold.
      block_axes: the axes that index blocks, which must come first.
    """
    assert block_axes == tuple(range(len(block_axes)))
    lengths = x.shape[: len(block_axes)]
    magnitudes = jnp.abs(x)
    rows = magnitudes.reshape(math.prod(lengths), -1)
    k = max(1, int(rows.shape[1] * fraction))
    threshold = kth_largest(rows, k)
    return magnitudes >= threshold.reshape(*lengths, *(1,) * (x.ndim - len(lengths)))


def filtered_adamw(
    kth_largest: KthLargest,
    block_axes: Mapping[str, tuple[int, ...]],
    *,
    fraction: float = 0.15,
    **adamw: Any,
) -> optax.GradientTransformation:
    """`optax.adamw` that updates only the coordinates with the largest momenta.

    The momentum is ranked as it is stored, so that a bfloat16 momentum is ranked after
    rounding.

    Args:
      kth_largest: the function that finds the threshold.
      block_axes: the block axes by parameter name.
      fraction: the share of each block that is updated.
      adamw: arguments of `optax.adamw`.
    """
    inner = optax.adamw(**adamw)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stepped, state = inner.update(updates, state, params)
        proposed: Any = stepped
        mu: Any = optax.tree.get(state, "mu")

        def keep(step: jax.Array, mu: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            moves = mask(mu, fraction, kth_largest, axes) & (mu != 0)
            return jnp.where(moves, step, 0)

        kept = {
            name: keep(step, mu[name], block_axes[name])
            for name, step in proposed.items()
        }
        return kept, state

    return optax.GradientTransformation(inner.init, update)
