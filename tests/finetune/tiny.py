"""A Llama small enough to make anew in every test, with everything unusual about it.

Grouped-query attention, an untied head, heads wider than their share, Llama 3's rotary
scaling. Names and shapes are written out as Hugging Face's, not taken from the loader.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers

from examples.finetune.model.attention import causal_mask
from examples.finetune.model.decoder import Decoder

SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
THETA = 10_000.0
CONFIG: dict[str, Any] = SIZES | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rope_theta": THETA,
    "rope_scaling": ROPE,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tensors() -> dict[str, np.ndarray]:
    """Returns seeded random weights by their Hugging Face names."""
    D, F, V = 32, 48, 272
    layer = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (64, D),
        "self_attn.k_proj.weight": (32, D),
        "self_attn.v_proj.weight": (32, D),
        "self_attn.o_proj.weight": (D, 64),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (V, D),
    }
    for index in range(3):
        shapes |= {f"model.layers.{index}.{name}": layer[name] for name in layer}
    # The legacy generator: its stream never changes between NumPy's versions.
    random = np.random.RandomState(0)
    return {
        name: (
            random.standard_normal(shape) / np.sqrt(shape[-1]) + (len(shape) == 1)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def token_ids() -> np.ndarray:
    """Returns seeded token ids [2, 40], longer than the rotary scaling's context."""
    return np.random.RandomState(1).randint(0, 260, (2, 40))


def tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer of single bytes, with three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|begin|>", "<|start|>", "<|end|>"])
    return core


def write_model(
    directory: pathlib.Path,
    config: dict[str, Any] = CONFIG,
    weights: dict[str, np.ndarray] | None = None,
) -> pathlib.Path:
    """Writes the tiny model as a Hugging Face directory and returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(
        tensors() if weights is None else weights, directory / "model.safetensors"
    )
    tokenizer().save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>", "special": True},
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def forward(
    model: Decoder, ids_BxT: np.ndarray, segments_BxT: np.ndarray
) -> np.ndarray:
    """Returns a model's logits [B, T, V]; positions count within each segment."""
    graph, params = nnx.split(model)
    starts_BxT = np.diff(segments_BxT, axis=1, prepend=-1) != 0
    index_T = np.arange(ids_BxT.shape[1])
    first_BxT = np.maximum.accumulate(np.where(starts_BxT, index_T[None], 0), axis=1)

    @jax.jit
    def run(params: nnx.State, ids: jax.Array, positions: jax.Array) -> jax.Array:
        mask = causal_mask(jax.numpy.asarray(segments_BxT))
        return nnx.merge(graph, params)(ids, positions, mask)

    return np.asarray(run(params, ids_BxT, index_T[None] - first_BxT))
