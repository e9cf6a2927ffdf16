"""Reads models from GGUF files: Llama's and Gemma 3's tensors, dequantised."""

import pathlib
from typing import Any

import numpy as np

from examples.finetune.command.errors import InputError
from examples.finetune.model import families
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
# By architecture, the `model_type` of a `config.json`.
_FAMILIES = {"llama": "llama", "gemma3": "gemma3_text"}


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

    return Source(config, Tokenizer.from_gguf(metadata), name, read, (path,))


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
    """Returns the config of the `config.json` that would describe the same model."""
    kind = metadata["general.architecture"]
    if kind not in _FAMILIES:
        raise InputError(
            f"The GGUF file holds a model of architecture {kind!r}; supported are "
            "llama and gemma3."
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{key}", default)
        if value is None:
            raise InputError(f"The GGUF file lacks {kind}.{key}.")
        return value

    width, heads = get("embedding_length"), get("attention.head_count")
    epsilon = get("attention.layer_norm_rms_epsilon")
    raw = {
        "model_type": _FAMILIES[kind],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length", width // heads),
        "rope_theta": get("rope.freq_base"),
        # Stored as float32; printed and parsed again, it is the intended 1e-5.
        "rms_norm_eps": float(str(np.float32(epsilon))),
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": True,  # the files have no tensor of the head
    }
    if kind == "gemma3":
        # The files lack which layers slide and their rotary base: both are the default.
        raw["sliding_window"] = get("attention.sliding_window")
        # As in Gemma 3's sizes of up to 12 billion parameters.
        raw["query_pre_attn_scalar"] = raw["head_dim"]
    try:
        return families.read(raw)
    except ValueError as error:
        raise InputError(f"The GGUF file describes no usable model: {error}") from error
