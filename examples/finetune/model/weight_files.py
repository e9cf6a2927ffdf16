"""The files of a model's directory, and the tensors in them.

Only safetensors are read, which cannot run code, and only within the directory.
"""

import pathlib

import numpy as np
import safetensors

from examples.finetune.command.errors import InputError
from examples.finetune.system.json_files import read_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Suffixes of the files that are read, and those of formats that can run code when they
# are read.
_OURS = (".json", ".jinja", ".safetensors")
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def check_links(directory: pathlib.Path) -> None:
    """Rejects links out of a model's directory, which may come from an untrusted
    source.

    Raises:
      InputError: a file that would be read is such a link.
    """
    root = directory.resolve()
    inside = [root]
    # The Hub's cache stores files beside the snapshots that link to them.
    if root.parent.name == "snapshots":
        inside.append(root.parent.parent / "blobs")
    for path in sorted(root.iterdir()):
        if path.suffix not in _OURS or not path.is_symlink():
            continue
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in inside):
            raise InputError(
                f"{path} is a link to {target}, outside the model's directory; only "
                "files inside it are read, so put a copy there."
            )


def by_tensor(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the file of each tensor in a model's directory.

    Raises:
      InputError: there are no safetensors, or their index is malformed or leads out of
        the directory.
    """
    index = directory / INDEX_FILE
    single = directory / WEIGHTS_FILE
    if single.is_file():
        return dict.fromkeys(shapes(single), single)
    if not index.is_file():
        unsafe = [p.name for p in sorted(directory.iterdir()) if p.suffix in _UNSAFE]
        instead = (
            f"; {unsafe[0]} is not read, since such files can run code: convert the "
            "weights to safetensors"
            if unsafe
            else ""
        )
        raise InputError(
            f"The model directory {directory} has neither {WEIGHTS_FILE} nor "
            f"{INDEX_FILE}{instead}."
        )
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict):
        raise InputError(f"{index} has no weight_map.")
    for tensor, file in names.items():
        # The index may be untrusted: a name with a path could make us read files that
        # are not part of the model.
        if (
            not isinstance(file, str)
            or pathlib.PurePath(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise InputError(
                f"{index} puts the tensor {tensor} into {file!r}, which does not "
                "name a safetensors file in its directory."
            )
    return {tensor: directory / file for tensor, file in names.items()}


def shapes(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shape and the type of each tensor in a file.

    Raises:
      InputError: the file cannot be read, or its header is invalid.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def read(path: pathlib.Path, tensor: str) -> np.ndarray:
    """Returns a tensor's values.

    Raises:
      InputError: the file can no longer be read.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(tensor)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"Cannot read the weights {path}: {error}.")
