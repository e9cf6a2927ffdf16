"""Models in Hugging Face layout: config.json, safetensors, tokenizer.json."""

import pathlib
from collections.abc import Mapping

import numpy as np

from examples.finetune.command.errors import InputError
from examples.finetune.model import families, weight_files
from examples.finetune.model.decoder_config import DecoderConfig, parameter_shapes
from examples.finetune.model.source import Source
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.system.json_files import read_object

CONFIG_FILE = "config.json"

# Supported types of tensors; other files have another meaning.
_DTYPES = ("F16", "BF16", "F32", "F64")


def open_repository(repository: str) -> Source:
    """Downloads a model's files, or finds them in the Hub's cache, and opens them.

    Args:
      repository: its id, ``owner/name``.

    Raises:
      InputError: if it cannot be downloaded, or from ``open_directory``.
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
    """Opens a model directory and checks everything except the weights' values.

    Args:
      directory: a directory in Hugging Face layout.
      name: the model's name in reports.

    Raises:
      InputError: if the model is not supported, a file is a link out of the directory,
        or a file or tensor is missing, malformed or of another shape than in
        ``config.json``.
    """
    weight_files.check_links(directory)
    config = read_config(directory / CONFIG_FILE)
    tokenizer = Tokenizer.from_directory(directory, config.vocab_size)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"The tokenizer of {directory} has {tokenizer.vocab_size} tokens, its "
            f"model only {config.vocab_size}."
        )
    files = weight_files.by_tensor(directory)
    _check_tensors(files, config)

    def read(path: str) -> np.ndarray:
        tensor = families.tensor_name(path, config)
        values = weight_files.read(files[tensor], tensor)
        return values.T if path.endswith("kernel") else values

    described = [*directory.glob("*.json"), *directory.glob("*.jinja")]
    return Source(
        config, tokenizer, name, read, (*sorted({*files.values(), *described}),)
    )


def read_config(path: pathlib.Path) -> DecoderConfig:
    """Reads a model's ``config.json``.

    Raises:
      InputError: if it cannot be read, lacks a size, or does not describe a decoder
        that ``decoder.Decoder`` supports.
    """
    raw = read_object(path)
    family = raw.get("model_type")
    if family not in families.FAMILIES:
        hint = "; its text model alone is" if family == "gemma3" else ""
        raise InputError(
            f"{path} describes a model of type {family!r}, which is not supported"
            f"{hint}; supported are {', '.join(families.FAMILIES)}."
        )
    for key, wanted in families.fixed(family).items():
        if raw.get(key, wanted) != wanted:
            raise InputError(
                f"{path} has {key} = {raw[key]!r}; only {wanted!r} is supported."
            )
    if "quantization_config" in raw:
        raise InputError(f"{path} describes quantized weights, which are unsupported.")
    try:
        return families.read(raw)
    except KeyError as error:
        raise InputError(f"{path} lacks {error.args[0]!r}.") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path} describes no usable model: {error}") from error


def _check_tensors(files: Mapping[str, pathlib.Path], config: DecoderConfig) -> None:
    found = {path: weight_files.shapes(path) for path in sorted(set(files.values()))}
    for path, wanted in parameter_shapes(config).items():
        tensor = families.tensor_name(path, config)
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
