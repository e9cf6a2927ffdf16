"""A tiny model of every supported family, with everything unusual about it.

The configurations are written as the files on the Hub are; names and shapes of tensors
are those of transformers, which `reference.py` stores.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.finetune import tiny

_SIZES = tiny.SIZES | {"rms_norm_eps": 1e-6}
# Rows are longer than the windows, and than the contexts that are stretched.
_WINDOW = 8

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SIZES
    | {
        "model_type": "llama",
        "rope_theta": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mistral": _SIZES
    | {"model_type": "mistral", "rope_theta": 10_000.0, "sliding_window": _WINDOW},
    "qwen2": {key: value for key, value in _SIZES.items() if key != "head_dim"}
    | {"model_type": "qwen2", "rope_theta": 1e6, "use_sliding_window": False},
    "qwen2, sliding": {key: _SIZES[key] for key in _SIZES if key != "head_dim"}
    | {
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "use_sliding_window": True,
        "sliding_window": _WINDOW,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": _SIZES
    | {"model_type": "qwen3", "rope_theta": 1e6, "tie_word_embeddings": True},
    "gemma3": _SIZES
    | {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": 24,
        "sliding_window": _WINDOW,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": True,
    },
}


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Returns seeded random weights; none is the value that a model begins with."""
    # The legacy generator: its stream never changes between NumPy's versions.
    random = np.random.RandomState(2)
    made = {}
    for name, shape in sorted(shapes.items()):
        drawn = random.standard_normal(shape) / np.sqrt(shape[-1] if shape[1:] else 4)
        made[name] = np.float32(drawn + name.endswith("norm.weight"))
    return made


def write_model(
    directory: pathlib.Path,
    family: str,
    shapes: Mapping[str, Sequence[int]],
    **changes: Any,
) -> pathlib.Path:
    """Writes a family's model in Hugging Face layout and returns its directory."""
    return tiny.write_model(directory, CONFIGS[family] | changes, weights(shapes))


def token_ids() -> np.ndarray:
    """Returns seeded token ids [1, 40]."""
    return tiny.token_ids()[:1]
