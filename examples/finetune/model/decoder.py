"""A decoder in Flax NNX: Llama, Mistral, Qwen2, Qwen3, Gemma 3 and similar models.

`decoder_config.DecoderConfig` has their differences. Capital letters in names are
dimensions: ``B`` batch, ``T`` tokens, ``S`` slots attended over, ``D`` width of the
residual stream, ``V`` vocabulary.
"""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from examples.finetune.model.attention import (
    Attention,
    Cache,
    MakeLinear,
    Sight,
    within_window,
)
from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.model.lora import Adapter, linear_maker
from examples.finetune.model.norm import MakeNorm, norm_maker
from examples.finetune.model.rotary import Rotary, frequencies
from examples.finetune.model.sharding import keep_rows


class FeedForward(nnx.Module):
    """The gated feed-forward layer, ``down(activation(gate(x)) * up(x))``."""

    def __init__(self, config: DecoderConfig, linear: MakeLinear) -> None:
        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)
        self.activation = config.activation

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Returns the term for the residual stream, given its normalized value."""
        activation = jax.nn.silu if self.activation == "silu" else jax.nn.gelu
        return self.down(activation(self.gate(x_BxTxD)) * self.up(x_BxTxD))


class Layer(nnx.Module):
    """One block: attention, then feed-forward, on the normalized residual stream."""

    def __init__(
        self, config: DecoderConfig, linear: MakeLinear, norm: MakeNorm
    ) -> None:
        self.attention_norm = norm(config.hidden_size)
        self.attention = Attention(config, linear, norm)
        self.mlp_norm = norm(config.hidden_size)
        self.mlp = FeedForward(config, linear)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.attention_post_norm = norm(config.hidden_size)
            self.mlp_post_norm = norm(config.hidden_size)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        sight: Sight,
        cache: Cache | None,
        index: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the residual stream after the block; arguments as for attention."""
        mixed_BxTxD, cache = self.attention(
            self.attention_norm(x_BxTxD), sight, cache, index
        )
        if self.post_norms:
            mixed_BxTxD = self.attention_post_norm(mixed_BxTxD)
        x_BxTxD = x_BxTxD + mixed_BxTxD
        fed_BxTxD = self.mlp(self.mlp_norm(x_BxTxD))
        if self.post_norms:
            fed_BxTxD = self.mlp_post_norm(fed_BxTxD)
        return x_BxTxD + fed_BxTxD, cache


class Decoder(nnx.Module):
    """A decoder-only language model.

    Parameters, by path: ``embed/embedding [V, D]``, ``layers/<i>/...``,
    ``final_norm/scale [D]`` and, if the head is not tied, ``head/kernel [D, V]``; every
    kernel is ``[in, out]``. With ``scan_layers`` there is no ``<i>``, and the layers'
    parameters are stacked on axis 0.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        scan_layers: bool = False,
        remat: bool = False,
        mesh: Mesh | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Makes a randomly initialised model.

        Args:
          config: the sizes and the kind of decoder.
          rngs: source of the initial values; equal seeds give equal values whether or
            not layers are scanned.
          dtype: dtype of the computation; softmax, norms and logits are in float32.
          param_dtype: dtype of the parameters.
          scan_layers: whether to trace one layer and scan it, which compiles faster and
            computes the same.
          remat: whether to recompute the inner values of each layer in the backward
            pass instead of storing them. On the CPU, for 8 x 128 tokens, this reduces
            the default model's temporary memory from 3.2 GB to 1.1 with
            ``scan_layers``, and from 2.9 to 2.7 without.
          mesh: from ``sharding.make_mesh``, over which the rows of activations are
            sharded; None for one device.
          adapter: for LoRA factors of the layers' kernels, at ``<kernel's
            place>/lora/lora_a [in, rank]`` and ``lora_b [rank, out]``.
        """
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        normal = nnx.initializers.normal(0.02)
        norm = norm_maker(
            from_one=config.norms_from_one, epsilon=config.norm_eps, **kinds
        )
        linear = linear_maker(adapter, kernel_init=normal, **kinds)
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.mesh = mesh
        self.embed = nnx.Embed(
            config.vocab_size, config.hidden_size, embedding_init=normal, **kinds
        )
        layers = [Layer(config, linear, norm) for _ in range(config.num_layers)]
        self.layers = _stacked(layers) if scan_layers else nnx.List(layers)
        self.final_norm = norm(config.hidden_size)
        if not config.tied_embedding:
            self.head = nnx.Linear(
                config.hidden_size,
                config.vocab_size,
                use_bias=False,
                kernel_init=normal,
                **kinds,
            )

    @overload
    def hidden(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxS: jax.Array,
        cache: None = None,
    ) -> jax.Array: ...
    @overload
    def hidden(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxS: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]: ...
    def hidden(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxS: jax.Array,
        cache: Cache | None = None,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """Runs the layers and the final norm.

        Args:
          tokens_BxT: int32 token ids.
          positions_BxT: int32 positions within each token's own sequence.
          mask_BxTxS: bool, the keys that each token attends to; ``S`` is ``T``, or the
            cache's slots.
          cache: the cache of earlier calls; this call writes its ``T`` keys and values
            to slots ``next`` to ``next + T``, which must be within ``S``.

        Returns:
          ``[B, T, D]`` in the computation's dtype; with a cache, the pair of this and
          the new cache.
        """
        config = self.config
        positions_BxS = positions_BxT
        if cache is not None:
            start = (0, cache.next)
            positions_BxS = jax.lax.dynamic_update_slice(
                cache.positions, positions_BxT.astype(jnp.int32), start
            )
            cache = cache._replace(positions=positions_BxS)
        sights = self._sights(positions_BxT, mask_BxTxS, positions_BxS)
        layers = self.layers
        graph = nnx.graphdef(layers if isinstance(layers, Layer) else layers[0])

        def run(
            carry: tuple[jax.Array, Cache | None],
            layer: tuple[nnx.State, int | jax.Array, bool | jax.Array],
        ) -> tuple[tuple[jax.Array, Cache | None], None]:
            (x_BxTxD, cache), (state, index, slides) = carry, layer
            made = nnx.merge(graph, state)  # all layers have the same graph
            sight = _chosen(sights, slides)
            x_BxTxD, cache = made(x_BxTxD, sight, cache, index)
            return (keep_rows(x_BxTxD, self.mesh), cache), None

        if self.remat:
            # Within a scan, the compiler cannot merge the recomputation away.
            run = jax.checkpoint(run, prevent_cse=not isinstance(layers, Layer))
        x_BxTxD = self.embed(tokens_BxT)
        if config.embedding_scale != 1:
            x_BxTxD *= jnp.asarray(config.embedding_scale, x_BxTxD.dtype)
        carry = (keep_rows(x_BxTxD, self.mesh), cache)
        slides = config.sliding_layers or (False,) * config.num_layers
        if isinstance(layers, Layer):
            indices = np.arange(config.num_layers)
            given = nnx.state(layers), jnp.asarray(indices), jnp.asarray(slides)
            carry, _ = jax.lax.scan(run, carry, given)
        else:
            for index, layer in enumerate(layers):
                carry, _ = run(carry, (nnx.state(layer), index, slides[index]))
        x_BxTxD, cache = carry
        x_BxTxD = self.final_norm(x_BxTxD)
        if cache is None:
            return x_BxTxD
        return x_BxTxD, cache._replace(next=cache.next + tokens_BxT.shape[1])

    def _sights(
        self,
        positions_BxT: jax.Array,
        mask_BxTxS: jax.Array,
        key_positions_BxS: jax.Array,
    ) -> tuple[Sight, Sight | None]:
        """Returns what tokens attend to in full and in sliding layers."""
        config = self.config
        turning = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        wide = Sight(mask_BxTxS, Rotary.at(positions_BxT, turning))
        if not any(config.sliding_layers):
            return wide, None
        near_BxTxS = within_window(
            mask_BxTxS, positions_BxT, key_positions_BxS, config.sliding_window or 0
        )
        rotary = wide.rotary
        if config.sliding_rope_theta is not None:
            local = frequencies(config.head_dim, config.sliding_rope_theta, None)
            rotary = Rotary.at(positions_BxT, local)
        return wide, Sight(near_BxTxS, rotary)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns the float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
        if self.config.tied_embedding:
            weights, pattern = self.embed.embedding[...], "...d,vd->...v"
        else:
            weights, pattern = self.head.kernel[...], "...d,dv->...v"
        return jnp.einsum(
            pattern,
            hidden,
            weights.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )

    def __call__(
        self, tokens_BxT: jax.Array, positions_BxT: jax.Array, mask_BxTxT: jax.Array
    ) -> jax.Array:
        """Returns the float32 logits ``[B, T, V]``; arguments as for ``hidden``."""
        return self.logits(self.hidden(tokens_BxT, positions_BxT, mask_BxTxT))


def _chosen(sights: tuple[Sight, Sight | None], slides: bool | jax.Array) -> Sight:
    wide, near = sights
    if near is None:
        return wide
    return jax.tree.map(lambda x, y: jnp.where(slides, x, y), near, wide)


def _stacked(layers: list[Layer]) -> Layer:
    graph, _ = nnx.split(layers[0])
    states = [nnx.state(layer) for layer in layers]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
