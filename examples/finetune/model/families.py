"""The families of models in `config.json`, and their names of tensors.

A family is a ``model_type`` of Hugging Face. To add one, define its differences from
Llama in `_READERS` and in `tensor_name`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.model.rotary import RopeScaling

_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    "attention_norm/scale": "input_layernorm.weight",
    "attention/query/kernel": "self_attn.q_proj.weight",
    "attention/key/kernel": "self_attn.k_proj.weight",
    "attention/value/kernel": "self_attn.v_proj.weight",
    "attention/query/bias": "self_attn.q_proj.bias",
    "attention/key/bias": "self_attn.k_proj.bias",
    "attention/value/bias": "self_attn.v_proj.bias",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    "attention/output/kernel": "self_attn.o_proj.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
# In layers with norms on both sides, the norm before the feed-forward layer has the
# name that otherwise belongs to the norm after attention.
_NAMES_WITH_POST_NORMS = _NAMES | {
    "attention_post_norm/scale": "post_attention_layernorm.weight",
    "mlp_norm/scale": "pre_feedforward_layernorm.weight",
    "mlp_post_norm/scale": "post_feedforward_layernorm.weight",
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
FAMILIES = tuple(_ARCHITECTURES)
# Keys of a config that are not read, and the only supported value of each.
_FIXED: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "mistral": {"hidden_act": "silu"},
    "qwen2": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
}


def tensor_name(path: str, config: DecoderConfig) -> str:
    """Returns the name of a parameter in the files, where kernels are ``[out, in]``."""
    names = _NAMES_WITH_POST_NORMS if config.post_norms else _NAMES
    if not path.startswith("layers/"):
        return names[path]
    _, index, rest = path.split("/", 2)
    return f"model.layers.{index}.{names[rest]}"


def fixed(family: str) -> dict[str, Any]:
    """Returns the keys of ``config.json`` that have only one supported value."""
    return _FIXED[family]


def read(raw: Mapping[str, Any]) -> DecoderConfig:
    """Returns the config that a ``config.json`` describes.

    Raises:
      KeyError: a size is missing.
      ValueError: a value is out of range.
    """
    family = raw["model_type"]
    heads = _whole(raw, "num_attention_heads")
    width = _whole(raw, "hidden_size")
    layers = _whole(raw, "num_hidden_layers")
    rope = _rope(raw)
    common = {
        "vocab_size": _whole(raw, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": _whole(raw, "intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": _whole(raw, "num_key_value_heads", heads),
        "head_dim": _whole(raw, "head_dim", width // heads),
        "rope_theta": float(rope.get("rope_theta") or raw.get("rope_theta") or 1e4),
        "rope_scaling": _rope_scaling(rope),
        "norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
        "max_positions": _whole(raw, "max_position_embeddings", 2048),
        "tied_embedding": _truth(raw, "tie_word_embeddings", family == "gemma3_text"),
        "family": family,
    }
    return DecoderConfig(**{**common, **_READERS[family](raw, common)})


def _llama(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _mistral(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    return _sliding(raw, common, lambda layer: True)


def _qwen2(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    return {"qkv_bias": True} | _qwen_sliding(raw, common)


def _qwen3(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    return {"qk_norm": True} | _qwen_sliding(raw, common)


def _qwen_sliding(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    if not _truth(raw, "use_sliding_window", False):
        return {}
    first = raw.get("max_window_layers", 28)
    return _sliding(raw, common, lambda layer: layer >= first)


def _gemma3(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    pattern = raw.get("sliding_window_pattern", 6)
    local = (raw.get("rope_parameters") or {}).get("sliding_attention") or {}
    theta = local.get("rope_theta") or raw.get("rope_local_base_freq") or 1e4
    # The default of transformers, not that of the other families.
    given = "rope_theta" in raw or "rope_theta" in _rope(raw)
    base = {} if given else {"rope_theta": 1e6}
    return {
        **base,
        "qk_norm": True,
        "post_norms": True,
        "norms_from_one": True,
        "activation": "gelu",
        "embedding_scale": math.sqrt(common["hidden_size"]),
        "attention_scale": float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
        **_sliding(raw, common, lambda layer: (layer + 1) % pattern != 0),
        "sliding_rope_theta": float(theta),
    }


_READERS: dict[str, Callable[..., dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
}


def _sliding(
    raw: Mapping[str, Any],
    common: Mapping[str, Any],
    usual: Callable[[int], bool],
) -> dict[str, Any]:
    """Returns which layers slide, by `layer_types` or by the family's default."""
    if raw.get("sliding_window") is None:
        return {}
    window = _whole(raw, "sliding_window")
    kinds = raw.get("layer_types")
    if kinds is None:
        slides = tuple(usual(layer) for layer in range(common["num_layers"]))
    else:
        for kind in kinds:
            if kind not in ("sliding_attention", "full_attention"):
                raise ValueError(f"layer_types has {kind!r}, which is unknown.")
        slides = tuple(kind == "sliding_attention" for kind in kinds)
    return {"sliding_window": window, "sliding_layers": slides}


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the model's part of ``config.json``."""
    written: dict[str, Any] = {
        **{key: x for key, x in _FIXED[config.family].items() if x is not None},
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
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
        **_written_rope(config),
    }
    if config.sliding_layers:
        names = {True: "sliding_attention", False: "full_attention"}
        written["layer_types"] = [names[slides] for slides in config.sliding_layers]
    if config.family != "llama":
        written["sliding_window"] = config.sliding_window
    if config.family in ("qwen2", "qwen3"):
        written["use_sliding_window"] = any(config.sliding_layers)
    if config.attention_scale is not None:
        written["query_pre_attn_scalar"] = round(config.attention_scale**-2)
    return written


def _written_rope(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None and scaling.original_max_positions is None:
        rope = {"rope_type": "linear", "factor": scaling.factor}
    elif scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    full = rope | {"rope_theta": config.rope_theta}
    # Readers before transformers 5 need these keys, later ones rope_parameters.
    older = {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
    }
    if config.sliding_rope_theta is None:
        return older | {"rope_parameters": full}
    local = {"rope_type": "default", "rope_theta": config.sliding_rope_theta}
    both = {"full_attention": full, "sliding_attention": local}
    local_older = {"rope_local_base_freq": config.sliding_rope_theta}
    return older | local_older | {"rope_parameters": both}


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return rope.get("full_attention", rope)


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(float(rope["factor"]))
    if kind != "llama3":
        raise ValueError(
            f"its rotary scaling {kind!r} is none of default, linear and llama3."
        )
    return RopeScaling(
        factor=float(rope["factor"]),
        low_frequency_factor=float(rope["low_freq_factor"]),
        high_frequency_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def _whole(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw[key] if default is None else raw.get(key)
    if value is None and default is not None:
        return default
    # In Python, a boolean is an int.
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} must be a positive whole number, got {value!r}.")
    return value


def _truth(raw: Mapping[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}.")
    return value
