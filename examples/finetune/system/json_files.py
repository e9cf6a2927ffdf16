"""JSON objects in files, with errors that name the file."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from examples.finetune.command.errors import InputError


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      InputError: if the file cannot be read or does not contain a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError:
        raise InputError(f"{path} is JSON nested too deeply.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return value


def read_optional_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or ``{}`` if there is no such file.

    Raises:
      InputError: from ``read_object``.
    """
    return read_object(path) if path.exists() else {}


def write_object(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
