"""Models in Hugging Face layout: config.json, safetensors, tokenizer.json."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.finetune.command.errors import InputError
from examples.finetune.model import weight_files
from examples.finetune.model.llama_config import LlamaConfig, parameter_shapes
from examples.finetune.model.rotary import RopeScaling
from examples.finetune.model.source import Source
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.system.json_files import read_object

CONFIG_FILE = "config.json"

_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    "attention_norm/scale": "input_layernorm.weight",
    "attention/query/kernel": "self_attn.q_proj.weight",
    "attention/key/kernel": "self_attn.k_proj.weight",
    "attention/value/kernel": "self_attn.v_proj.weight",
    "attention/output/kernel": "self_attn.o_proj.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
# Files whose tensors of these types we compute with; others hold something else.
_DTYPES = ("F16", "BF16", "F32", "F64")
# What a config may say beyond the sizes, and the one value that our Llama computes.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def tensor_name(path: str) -> str:
    """Returns the file's name for a parameter; its kernels are ``[out, in]``."""
    if not path.startswith("layers/"):
        return _NAMES[path]
    _, index, rest = path.split("/", 2)
    return f"model.layers.{index}.{_NAMES[rest]}"


def open_repository(repository: str) -> Source:
    """Downloads a model's files, or finds them in the Hub's cache, and opens them.

    Args:
      repository: its id, ``owner/name``.

    Raises:
      InputError: if it cannot be had, or as ``open_directory`` does.
    """
    import huggingface_hub  # only needed here

    try:
        directory = huggingface_hub.snapshot_download(
            repository, allow_patterns=["*.json", "*.jinja", "*.safetensors"]
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"Cannot fetch the model {repository!r}, which is no local directory, from "
            f"the Hugging Face Hub: {reason[0]}"
        ) from error
    return open_directory(pathlib.Path(directory), name=repository)


def open_directory(directory: pathlib.Path, name: str) -> Source:
    """Opens a model directory and checks all of it but the weights' values.

    Args:
      directory: in Hugging Face layout.
      name: what reports call the model.

    Raises:
      InputError: if it is not a Llama, a file of it is a link that leads elsewhere, or
        a file or tensor is missing, malformed or of another shape than ``config.json``
        says.
    """
    weight_files.check_links(directory)
    config = read_config(directory / CONFIG_FILE)
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"The tokenizer of {directory} has {tokenizer.vocab_size} tokens, its "
            f"model only {config.vocab_size}."
        )
    files = weight_files.by_tensor(directory)
    _check_tensors(files, config)

    def read(path: str) -> np.ndarray:
        tensor = tensor_name(path)
        values = weight_files.read(files[tensor], tensor)
        return values.T if path.endswith("kernel") else values

    return Source(config, tokenizer, name, read)


def read_config(path: pathlib.Path) -> LlamaConfig:
    """Reads a Llama's ``config.json``.

    Raises:
      InputError: if it cannot be read, lacks a size, or is not a Llama that
        ``llama.Llama`` computes.
    """
    raw = read_object(path)
    if raw.get("model_type") != "llama":
        raise InputError(
            f"{path} describes a model of type {raw.get('model_type')!r}; only 'llama' "
            "is supported."
        )
    for key, wanted in _FIXED.items():
        if raw.get(key, wanted) != wanted:
            raise InputError(
                f"{path} has {key} = {raw[key]!r}; only {wanted!r} is supported."
            )
    if "quantization_config" in raw:
        raise InputError(f"{path} describes quantized weights, which are unsupported.")
    try:
        return _config(raw)
    except KeyError as error:
        raise InputError(f"{path} lacks {error.args[0]!r}.") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path} describes no usable Llama: {error}") from error


def config_json(config: LlamaConfig) -> dict[str, Any]:
    """Returns the part of ``config.json`` that the sizes decide."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return _FIXED | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embedding,
        # Readers before transformers 5 want these two, later ones rope_parameters.
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    }


def _config(raw: Mapping[str, Any]) -> LlamaConfig:
    heads = _whole(raw, "num_attention_heads")
    width = _whole(raw, "hidden_size")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return LlamaConfig(
        vocab_size=_whole(raw, "vocab_size"),
        hidden_size=width,
        intermediate_size=_whole(raw, "intermediate_size"),
        num_layers=_whole(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_whole(raw, "num_key_value_heads", heads),
        head_dim=_whole(raw, "head_dim", width // heads),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_positions=_whole(raw, "max_position_embeddings", 2048),
        tied_embedding=_truth(raw, "tie_word_embeddings"),
        rope_scaling=_rope_scaling(rope),
    )


def _whole(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw[key] if default is None else raw.get(key)
    if value is None and default is not None:
        return default
    # A boolean is an int to Python.
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} must be a positive whole number, got {value!r}.")
    return value


def _truth(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}.")
    return value


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"its rotary scaling {kind!r} is neither default nor llama3.")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_frequency_factor=float(rope["low_freq_factor"]),
        high_frequency_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def _check_tensors(files: Mapping[str, pathlib.Path], config: LlamaConfig) -> None:
    found = {path: weight_files.shapes(path) for path in sorted(set(files.values()))}
    for path, wanted in parameter_shapes(config).items():
        tensor = tensor_name(path)
        if tensor not in files or tensor not in found[files[tensor]]:
            raise InputError(
                f"The model has no tensor {tensor}, which its config.json asks for."
            )
        shape, dtype = found[files[tensor]][tensor]
        if dtype not in _DTYPES:
            raise InputError(
                f"The tensor {tensor} in {files[tensor]} is of type {dtype}; weights "
                f"must be of {', '.join(_DTYPES)}."
            )
        stored = wanted[::-1] if path.endswith("kernel") else wanted
        if shape != stored:
            raise InputError(
                f"The tensor {tensor} in {files[tensor]} has the shape {shape}; the "
                f"model's config.json asks for {stored}."
            )
