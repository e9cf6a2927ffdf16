"""Reads models from GGUF files: Llama's and Gemma 3's tensors, dequantised."""

import math
import pathlib
from typing import Any

import numpy as np

from examples.finetune.command.errors import InputError
from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.model.source import Source
from examples.finetune.model.tokenizer import Tokenizer

_NAMES = {
    "embed/embedding": "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "attention_norm/scale": "attn_norm.weight",
    "attention/query/kernel": "attn_q.weight",
    "attention/key/kernel": "attn_k.weight",
    "attention/value/kernel": "attn_v.weight",
    "attention/query_norm/scale": "attn_q_norm.weight",
    "attention/key_norm/scale": "attn_k_norm.weight",
    "attention/output/kernel": "attn_output.weight",
    "attention_post_norm/scale": "post_attention_norm.weight",
    "mlp_norm/scale": "ffn_norm.weight",
    "mlp/gate/kernel": "ffn_gate.weight",
    "mlp/up/kernel": "ffn_up.weight",
    "mlp/down/kernel": "ffn_down.weight",
    "mlp_post_norm/scale": "post_ffw_norm.weight",
}
# In Gemma 3, all but every sixth layer slide, with another rotary base. llama.cpp knows
# both, but its files do not contain them.
_GEMMA3_PATTERN, _GEMMA3_LOCAL_THETA = 6, 10_000.0


def open_gguf(path: pathlib.Path, name: str) -> Source:
    """Opens a GGUF file without reading its weights.

    Args:
      path: the file.
      name: the model's name in reports.

    Raises:
      InputError: if its architecture or tokenizer is not supported.
    """
    import gguf  # slow to import, and only needed here

    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    config = _config(metadata)
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def read(path: str) -> np.ndarray:
        tensor = stored[_name(path)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if path.endswith("kernel"):
            return _half_split(values, path, config).T
        if config.norms_from_one and path.endswith("scale"):
            return values - np.float32(1)
        return np.array(values)

    return Source(config, Tokenizer.from_gguf(metadata), name, read)


def _name(path: str) -> str:
    if not path.startswith("layers/"):
        return _NAMES[path]
    _, index, rest = path.split("/", 2)
    return f"blk.{index}.{_NAMES[rest]}"


def _half_split(values: np.ndarray, path: str, config: DecoderConfig) -> np.ndarray:
    """Reorders Llama's query and key rows from interleaved to half-split pairs."""
    if config.family != "llama" or not path.endswith(("query/kernel", "key/kernel")):
        return values
    rows = values.reshape(-1, config.head_dim // 2, 2, values.shape[1])
    return rows.swapaxes(1, 2).reshape(values.shape)


def _config(metadata: dict[str, Any]) -> DecoderConfig:
    kind = metadata["general.architecture"]
    if kind not in ("llama", "gemma3"):
        raise InputError(
            f"The GGUF file holds a model of architecture {kind!r}; supported are "
            "llama and gemma3."
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{key}", default)
        if value is None:
            raise InputError(f"The GGUF file lacks {kind}.{key}.")
        return value

    width, layers = get("embedding_length"), get("block_count")
    heads = get("attention.head_count")
    common: dict[str, Any] = {
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length", width // heads),
        "rope_theta": get("rope.freq_base"),
        # Stored as float32; printed and parsed again, it is the intended 1e-5.
        "norm_eps": float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        "max_positions": get("context_length"),
        "tied_embedding": True,  # the files have no tensor of the head
    }
    if kind == "llama":
        return DecoderConfig(**common)
    return DecoderConfig(
        **common,
        family="gemma3_text",
        qk_norm=True,
        post_norms=True,
        norms_from_one=True,
        activation="gelu",
        embedding_scale=math.sqrt(width),
        # As in Gemma 3's sizes of up to 12 billion parameters.
        attention_scale=common["head_dim"] ** -0.5,
        sliding_window=get("attention.sliding_window"),
        sliding_layers=tuple(
            (layer + 1) % _GEMMA3_PATTERN != 0 for layer in range(layers)
        ),
        sliding_rope_theta=_GEMMA3_LOCAL_THETA,
    )
