"""Grouped-query attention with rotary positions, a mask and a key-value cache.

Capital letters in names are dimensions: ``B`` batch, ``T`` tokens, ``S`` slots
attended over, ``D`` width of the residual stream, ``N`` query heads, ``K`` key-value
heads, ``H`` width of a head, ``L`` layers.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.model.norm import MakeNorm
from examples.finetune.model.rotary import Rotary


class MakeLinear(Protocol):
    """Makes a linear map of a layer."""

    def __call__(
        self, in_features: int, out_features: int, *, use_bias: bool = False
    ) -> nnx.Linear:
        """Returns a map between the given numbers of features."""
        ...


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, for decoding.

    Attributes:
      key: shape ``[L, B, S, K, H]``, rotated.
      value: shape ``[L, B, S, K, H]``.
      positions: int32 ``[B, S]``, the positions of the tokens in the slots.
      next: int32 scalar, the first free slot of the ``S``.
    """

    key: jax.Array
    value: jax.Array
    positions: jax.Array
    next: jax.Array


def init_cache(
    config: DecoderConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Returns an empty cache with ``length`` slots for each of ``batch`` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((batch, length), jnp.int32),
        jnp.zeros((), jnp.int32),
    )


class Sight(NamedTuple):
    """What the tokens of a layer attend to, and the rotations of queries and keys.

    Attributes:
      mask_BxTxS: bool, the keys that each token attends to.
      rotary: the rotations at the tokens' positions.
    """

    mask_BxTxS: jax.Array
    rotary: Rotary


def causal_mask(segments_BxT: jax.Array) -> jax.Array:
    """Returns the keys that each query attends to, for padded or packed rows.

    Args:
      segments_BxT: int32; 0 is padding, each packed example has its own number.

    Returns:
      bool ``[B, T, T]`` (query, key): true for keys of the query's own segment that are
      not after it. Padding does not attend and is not attended to.
    """
    T = segments_BxT.shape[1]
    query_BxTx1 = segments_BxT[:, :, None]
    same_BxTxT = (query_BxTx1 == segments_BxT[:, None, :]) & (query_BxTx1 != 0)
    return same_BxTxT & jnp.tri(T, dtype=bool)[None]


def within_window(
    mask_BxTxS: jax.Array,
    positions_BxT: jax.Array,
    key_positions_BxS: jax.Array,
    window: int,
) -> jax.Array:
    """Removes from a mask the keys that are ``window`` or more positions away."""
    distance_BxTxS = positions_BxT[:, :, None] - key_positions_BxS[:, None, :]
    return mask_BxTxS & (distance_BxTxS < window)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(
        self, config: DecoderConfig, linear: MakeLinear, norm: MakeNorm
    ) -> None:
        D, H, bias = config.hidden_size, config.head_dim, config.qkv_bias
        self.head_dim = H
        self.scale = config.attention_scale
        self.query = linear(D, config.num_heads * H, use_bias=bias)
        self.key = linear(D, config.num_kv_heads * H, use_bias=bias)
        self.value = linear(D, config.num_kv_heads * H, use_bias=bias)
        self.output = linear(config.num_heads * H, D)
        self.normed = config.qk_norm
        if config.qk_norm:
            self.query_norm, self.key_norm = norm(H), norm(H)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        sight: Sight,
        cache: Cache | None,
        index: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        """Combines the values of the tokens that each token attends to.

        Args:
          x_BxTxD: the normalized residual stream.
          sight: what the tokens attend to.
          cache: keys and values so far, which are extended and attended to, or None.
          index: this layer's number, its index in the cache.

        Returns:
          The term for the residual stream, and the new cache or None.
        """
        heads = (*x_BxTxD.shape[:2], -1, self.head_dim)
        query_BxTxNxH = self.query(x_BxTxD).reshape(heads)
        key_BxSxKxH = self.key(x_BxTxD).reshape(heads)
        value_BxSxKxH = self.value(x_BxTxD).reshape(heads)
        if self.normed:
            query_BxTxNxH = self.query_norm(query_BxTxNxH)
            key_BxSxKxH = self.key_norm(key_BxSxKxH)
        query_BxTxNxH = sight.rotary.turn(query_BxTxNxH)
        key_BxSxKxH = sight.rotary.turn(key_BxSxKxH)
        if cache is not None:
            # The whole cache is updated in place and read by layer, since stacking the
            # results of layers would copy all of it for every token.
            start = (index, 0, cache.next, 0, 0)
            cache = cache._replace(
                key=_write(cache.key, key_BxSxKxH, start),
                value=_write(cache.value, value_BxSxKxH, start),
            )
            key_BxSxKxH = cache.key[index].astype(query_BxTxNxH.dtype)
            value_BxSxKxH = cache.value[index].astype(query_BxTxNxH.dtype)
        mixed_BxTxNxH = jax.nn.dot_product_attention(
            query_BxTxNxH,
            key_BxSxKxH,
            value_BxSxKxH,
            mask=sight.mask_BxTxS[:, None],
            scale=self.scale,
        )
        return self.output(mixed_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1)), cache


def _write(
    slots: jax.Array, new: jax.Array, start: tuple[int | jax.Array, ...]
) -> jax.Array:
    return jax.lax.dynamic_update_slice(slots, new[None].astype(slots.dtype), start)
