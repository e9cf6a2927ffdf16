"""Writes a model in Hugging Face layout, for transformers and compatible programs."""

import math
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.model import families, huggingface, weight_files
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.decoder_config import parameter_shapes
from examples.finetune.model.sharding import parameter_path
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.system import hosts
from examples.finetune.system.files import nearest_existing
from examples.finetune.system.hosts import fetch
from examples.finetune.system.json_files import read_optional_object, write_object

_MARK = {"exported_by": "mofo_jax"}
_GENERATION_FILE = "generation_config.json"
_FILE_BYTES = 5 * 10**9


def check_directory(directory: pathlib.Path) -> None:
    """Checks, before any long work, that an export can be written.

    Args:
      directory: a new or empty directory, or an earlier export, which is replaced.

    Raises:
      InputError: if it has other files, or cannot be written.
    """
    try:
        _check_replaceable(directory)
        # Its parents may be in a run directory, which does not exist yet.
        with tempfile.TemporaryDirectory(dir=nearest_existing(directory.parent)):
            pass
    except OSError as error:
        raise _cannot_write(directory, error) from error


def export(model: Decoder, tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    """Writes a model directory that transformers loads.

    It has ``config.json``, ``generation_config.json``, the tokenizer with its chat
    template, and the weights as safetensors in the parameters' own dtype, in files of
    at most 5 GB. It is written atomically.

    Args:
      model: scanned or not, sharded or not. If several processes hold it, all must call
        this function, and the first one writes.
      tokenizer: the model's tokenizer.
      directory: as for ``check_directory``.

    Raises:
      InputError: from ``check_directory``, or if the disk is full.
    """
    if not hosts.is_first():
        # All processes are needed, since each has a part of the parameters.
        params = _parameters(model)
        for path in parameter_shapes(model.config):
            _tensor(params, path)
        return
    check_directory(directory)
    ids = _token_ids(tokenizer)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Beside the directory, so that the last step is a rename.
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            new = pathlib.Path(temporary) / "new"
            new.mkdir()
            dtype = _write_weights(model, new)
            config = families.write(model.config) | ids | _MARK
            write_object(new / huggingface.CONFIG_FILE, config | {"torch_dtype": dtype})
            write_object(new / _GENERATION_FILE, ids)
            tokenizer.save(new)
            if directory.exists():
                directory.rename(pathlib.Path(temporary) / "old")
            new.rename(directory)
    # safetensors reports a full disk with its own error.
    except (OSError, safetensors.SafetensorError) as error:
        raise _cannot_write(directory, error) from error


def _cannot_write(directory: pathlib.Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else error
    return InputError(f"Cannot write the export to {directory}: {reason}.")


def _check_replaceable(directory: pathlib.Path) -> None:
    if not directory.exists() or not any(directory.iterdir()):
        return
    # Other files belong to the user, and replacing the directory would delete them.
    ours = {huggingface.CONFIG_FILE, weight_files.INDEX_FILE, _GENERATION_FILE}
    ours |= {"tokenizer.json", "tokenizer_config.json"}
    foreign = [
        path.name
        for path in directory.iterdir()
        if path.name not in ours and path.suffix != ".safetensors"
    ]
    config = read_optional_object(directory / huggingface.CONFIG_FILE)
    if foreign or not _MARK.items() <= config.items():
        raise InputError(
            f"The export directory {directory} is not empty and is not an earlier "
            "export; name another, or empty it."
        )


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": [
            tokenizer.eos_id,
            *sorted(tokenizer.stop_ids - {tokenizer.eos_id}),
        ],
        "pad_token_id": tokenizer.pad_id,
    }


def _write_weights(model: Decoder, directory: pathlib.Path) -> str:
    """Writes safetensors and, for several files, their index; returns the dtype."""
    from huggingface_hub import split_state_dict_into_shards_factory

    params = _parameters(model)
    dtype = params["embed/embedding"].dtype
    shapes = parameter_shapes(model.config)
    paths = {families.tensor_name(path, model.config): path for path in shapes}
    split = split_state_dict_into_shards_factory(
        {name: math.prod(shapes[path]) for name, path in paths.items()},
        get_storage_size=lambda size: size * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=_FILE_BYTES,
    )
    for name, tensors in split.filename_to_tensors.items():
        values = {tensor: _tensor(params, paths[tensor]) for tensor in tensors}
        # transformers rejects files that do not specify a framework.
        safetensors.numpy.save_file(values, directory / name, {"format": "pt"})
        # The files are readable only by their owner by default.
        (directory / name).chmod(0o644)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_object(directory / weight_files.INDEX_FILE, index)
    return dtype.name


def _parameters(model: Decoder) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    return {parameter_path(path): leaf for path, leaf in leaves}


def _tensor(params: dict[str, jax.Array], path: str) -> np.ndarray:
    if path in params:
        values = params[path]
    else:
        _, index, rest = path.split("/", 2)
        values = params[f"layers/{rest}"][int(index)]
    values = fetch(values)
    return np.ascontiguousarray(values.T if path.endswith("kernel") else values)
