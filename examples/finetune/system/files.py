"""Files that are written atomically, and JSON in them."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from examples.finetune.command.errors import InputError

# Suffix of unfinished files, which identifies those of a killed process.
UNFINISHED = ".part"


def nearest_existing(path: pathlib.Path) -> pathlib.Path:
    """Returns a path, or the first of its parents that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` once it is complete.

    Yields:
      A binary file; if the block raises, `path` is unchanged.
    """
    unfinished = {"prefix": f".{path.name}.", "suffix": UNFINISHED, "delete": False}
    # Includes errors when the file is closed.
    with (
        _naming(path),
        tempfile.NamedTemporaryFile(dir=path.parent, **unfinished) as file,
    ):
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Temporary files are private, which results need not be.
            pathlib.Path(file.name).chmod(0o644)
            pathlib.Path(file.name).replace(path)
        except BaseException:
            pathlib.Path(file.name).unlink()
            raise


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Adds the file's name to errors without one, such as for a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file's text atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces a file by a value as indented JSON; NaN and infinity become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None if there is no such file.

    Raises:
      InputError: the file does not contain a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (not JSON); remove it to go on")
    return value


def digest(*paths: pathlib.Path) -> str:
    """Returns the SHA-256 of the contents of files, one after another."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: whole)
    return whole.hexdigest()


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the objects in a JSON Lines file, except damaged lines; [] if missing."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def write_json_lines(path: pathlib.Path, values: Iterable[Any]) -> None:
    """Replaces a file by values as JSON Lines."""
    lines = [json.dumps(_finite(value), allow_nan=False) for value in values]
    write_text(path, "".join(f"{line}\n" for line in lines))


def append_json(path: pathlib.Path, value: Any) -> None:
    """Appends a value to a JSON Lines file."""
    with _naming(path), path.open("a") as file:
        file.write(json.dumps(_finite(value), allow_nan=False) + "\n")
