"""Grouped-query attention with rotary positions, a mask and a key-value cache.

Capital letters in names are dimensions: ``B`` batch, ``T`` tokens, ``S`` slots
attended over, ``D`` width of the residual stream, ``N`` query heads, ``K`` key-value
heads, ``H`` width of a head, ``L`` layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.finetune.model.llama_config import LlamaConfig
from examples.finetune.model.rotary import Rotary

MakeLinear = Callable[[int, int], nnx.Linear]


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, for decoding.

    Attributes:
      key: shape ``[L, B, S, K, H]``, rotated.
      value: shape ``[L, B, S, K, H]``.
      next: int32 scalar, the first free slot of the ``S``.
    """

    key: jax.Array
    value: jax.Array
    next: jax.Array


def init_cache(
    config: LlamaConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Returns an empty cache with ``length`` slots for each of ``batch`` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    return Cache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32)
    )


def causal_mask(segments_BxT: jax.Array) -> jax.Array:
    """Says which keys each query may see in a batch of padded or packed rows.

    Args:
      segments_BxT: int32; 0 is padding, each packed example has its own number.

    Returns:
      bool ``[B, T, T]`` (query, key): true for keys of the query's own segment at or
      before it. Padding sees nothing and is not seen.
    """
    T = segments_BxT.shape[1]
    query_BxTx1 = segments_BxT[:, :, None]
    same_BxTxT = (query_BxTx1 == segments_BxT[:, None, :]) & (query_BxTx1 != 0)
    return same_BxTxT & jnp.tri(T, dtype=bool)[None]


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, config: LlamaConfig, linear: MakeLinear) -> None:
        D, H = config.hidden_size, config.head_dim
        self.head_dim = H
        self.query = linear(D, config.num_heads * H)
        self.key = linear(D, config.num_kv_heads * H)
        self.value = linear(D, config.num_kv_heads * H)
        self.output = linear(config.num_heads * H, D)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        rotary: Rotary,
        mask_BxTxS: jax.Array,
        cache: Cache | None,
        index: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        """Mixes each token with those it may see.

        Args:
          x_BxTxD: normed residual stream.
          rotary: the turns at the tokens' positions.
          mask_BxTxS: bool, which keys each token may see.
          cache: keys and values so far, written and attended to if there is one.
          index: this layer's number, its place in the cache.

        Returns:
          What to add to the residual stream, and the new cache or None.
        """
        heads = (*x_BxTxD.shape[:2], -1, self.head_dim)
        query_BxTxNxH = rotary.turn(self.query(x_BxTxD).reshape(heads))
        key_BxSxKxH = rotary.turn(self.key(x_BxTxD).reshape(heads))
        value_BxSxKxH = self.value(x_BxTxD).reshape(heads)
        if cache is not None:
            # The whole cache is updated in place and read back by layer: stacking
            # per-layer results instead would copy all of it for every token.
            start = (index, 0, cache.next, 0, 0)
            cache = cache._replace(
                key=_write(cache.key, key_BxSxKxH, start),
                value=_write(cache.value, value_BxSxKxH, start),
            )
            key_BxSxKxH = cache.key[index].astype(query_BxTxNxH.dtype)
            value_BxSxKxH = cache.value[index].astype(query_BxTxNxH.dtype)
        mixed_BxTxNxH = jax.nn.dot_product_attention(
            query_BxTxNxH, key_BxSxKxH, value_BxSxKxH, mask=mask_BxTxS[:, None]
        )
        return self.output(mixed_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1)), cache


def _write(
    slots: jax.Array, new: jax.Array, start: tuple[int | jax.Array, ...]
) -> jax.Array:
    return jax.lax.dynamic_update_slice(slots, new[None].astype(slots.dtype), start)
