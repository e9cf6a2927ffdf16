"""The same filter with the k-th largest magnitude found by `lax.top_k` or a sort."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

KthLargest = Callable[[jax.Array, int], jax.Array]


def kth_by_top_k(magnitudes_BxN: jax.Array, k: int) -> jax.Array:
    """The k-th largest of each row by `lax.top_k`, [B, 1]."""
    return lax.top_k(magnitudes_BxN, k)[0][:, k - 1 :]


def kth_by_sort(magnitudes_BxN: jax.Array, k: int) -> jax.Array:
    """The k-th largest of each row by `jnp.sort`, [B, 1]."""
    size = magnitudes_BxN.shape[1]
    return jnp.sort(magnitudes_BxN, axis=1)[:, size - k : size - k + 1]


def mask(
    x: jax.Array,
    fraction: float,
    kth_largest: KthLargest,
    block_axes: tuple[int, ...] = (),
) -> jax.Array:
    """Marks the largest magnitudes of each block, as `mofo_jax.top_fraction_mask`.

    Args:
      x: floating-point array.
      fraction: the share of each block to mark.
      kth_largest: how the threshold is found.
      block_axes: the axes that index blocks; here they must come first.
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
    """`optax.adamw` of which only the coordinates with the largest momenta move.

    The momentum is ranked as the state keeps it, so that one in bfloat16 is ranked
    after it was rounded.

    Args:
      kth_largest: how the threshold is found.
      block_axes: by the names of the parameters.
      fraction: the share of each block that moves.
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
