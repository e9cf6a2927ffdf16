"""The Llama architecture in Flax NNX: Llama 1 to 3, TinyLlama, SmolLM2.

Capital letters in names are dimensions: ``B`` batch, ``T`` tokens, ``S`` slots
attended over, ``D`` width of the residual stream, ``V`` vocabulary.
"""

import functools
from collections.abc import Callable
from typing import overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from examples.finetune.model.attention import Attention, MakeLinear
from examples.finetune.model.attention import Cache as Cache
from examples.finetune.model.attention import causal_mask as causal_mask
from examples.finetune.model.attention import init_cache as init_cache
from examples.finetune.model.llama_config import LlamaConfig as LlamaConfig
from examples.finetune.model.lora import Adapter, linear_maker
from examples.finetune.model.rotary import RopeScaling as RopeScaling
from examples.finetune.model.rotary import Rotary, frequencies
from examples.finetune.model.sharding import keep_rows


class FeedForward(nnx.Module):
    """The gated feed-forward layer, ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: LlamaConfig, linear: MakeLinear) -> None:
        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Returns what to add to the residual stream, given it normed."""
        return self.down(jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD))


class Layer(nnx.Module):
    """One block: attention, then feed-forward, each on the normed residual stream."""

    def __init__(
        self,
        config: LlamaConfig,
        linear: MakeLinear,
        norm: Callable[[], nnx.RMSNorm],
    ) -> None:
        self.attention_norm = norm()
        self.attention = Attention(config, linear)
        self.mlp_norm = norm()
        self.mlp = FeedForward(config, linear)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        rotary: Rotary,
        mask_BxTxS: jax.Array,
        cache: Cache | None,
        index: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the residual stream after the block; arguments as for attention."""
        mixed_BxTxD, cache = self.attention(
            self.attention_norm(x_BxTxD), rotary, mask_BxTxS, cache, index
        )
        x_BxTxD = x_BxTxD + mixed_BxTxD
        return x_BxTxD + self.mlp(self.mlp_norm(x_BxTxD)), cache


class Llama(nnx.Module):
    """A Llama language model without biases.

    Parameters, by path: ``embed/embedding [V, D]``, ``layers/<i>/...``,
    ``final_norm/scale [D]`` and, when the head is not tied, ``head/kernel [D, V]``;
    every kernel is ``[in, out]``. With ``scan_layers`` the ``<i>`` is gone and the
    layers' parameters are stacked on axis 0.
    """

    def __init__(
        self,
        config: LlamaConfig,
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
          config: the sizes.
          rngs: source of the initial values; equal seeds give equal values whether
            or not layers are scanned.
          dtype: of the computation; softmax, norms and logits stay float32.
          param_dtype: of the parameters.
          scan_layers: one traced layer, scanned: compiles faster, runs the same.
          remat: recompute each layer's inside during the backward pass instead of
            keeping it. With ``scan_layers`` that takes the default model's temporary
            memory for 8 x 128 tokens on the CPU from 3.2 GB to 1.1, without it from
            2.9 to 2.7.
          mesh: from ``sharding.make_mesh``, over which activations are split by rows;
            None for one device.
          adapter: gives the layers' kernels LoRA factors, ``<kernel's
            place>/lora/lora_a [in, rank]`` and ``lora_b [rank, out]``.
        """
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        normal = nnx.initializers.normal(0.02)
        linear = {"use_bias": False, "kernel_init": normal, **kinds}
        norm = functools.partial(
            nnx.RMSNorm, config.hidden_size, epsilon=config.norm_eps, **kinds
        )
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.mesh = mesh
        self.embed = nnx.Embed(
            config.vocab_size, config.hidden_size, embedding_init=normal, **kinds
        )
        adapted = linear_maker(adapter, **linear)
        layers = [Layer(config, adapted, norm) for _ in range(config.num_layers)]
        self.layers = _stacked(layers) if scan_layers else nnx.List(layers)
        self.final_norm = norm()
        if not config.tied_embedding:
            self.head = nnx.Linear(config.hidden_size, config.vocab_size, **linear)

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
          mask_BxTxS: bool, which keys each token may see; ``S`` is ``T``, or the
            cache's slots.
          cache: what earlier calls left; this call writes its ``T`` keys and values
            at slots ``next`` to ``next + T``, which must lie within ``S``.

        Returns:
          ``[B, T, D]`` in the computation's dtype; with a cache, the pair of it and
          the new cache.
        """
        config = self.config
        turning = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        rotary = Rotary.at(positions_BxT, turning)
        layers = self.layers
        graph = nnx.graphdef(layers if isinstance(layers, Layer) else layers[0])

        def run(
            carry: tuple[jax.Array, Cache | None],
            layer_and_index: tuple[nnx.State, int | jax.Array],
        ) -> tuple[tuple[jax.Array, Cache | None], None]:
            (x_BxTxD, cache), (state, index) = carry, layer_and_index
            layer = nnx.merge(graph, state)  # all layers have the same graph
            x_BxTxD, cache = layer(x_BxTxD, rotary, mask_BxTxS, cache, index)
            return (keep_rows(x_BxTxD, self.mesh), cache), None

        if self.remat:
            # Inside a scan the compiler cannot merge the recomputation away.
            run = jax.checkpoint(run, prevent_cse=not isinstance(layers, Layer))
        carry = (keep_rows(self.embed(tokens_BxT), self.mesh), cache)
        if isinstance(layers, Layer):
            states = nnx.state(layers)
            carry, _ = jax.lax.scan(run, carry, (states, jnp.arange(config.num_layers)))
        else:
            for index, layer in enumerate(layers):
                carry, _ = run(carry, (nnx.state(layer), index))
        x_BxTxD, cache = carry
        x_BxTxD = self.final_norm(x_BxTxD)
        if cache is None:
            return x_BxTxD
        return x_BxTxD, cache._replace(next=cache.next + tokens_BxT.shape[1])

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


def _stacked(layers: list[Layer]) -> Layer:
    graph, _ = nnx.split(layers[0])
    states = [nnx.state(layer) for layer in layers]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
