"""The file of results, with one entry for each case of each part."""

import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from examples.finetune.command.errors import InputError
from examples.finetune.system.files import read_json, write_json

Entry = dict[str, Any]
Parts = Mapping[str, Mapping[str, Mapping[str, Any]]]

# Packages whose versions may affect a measurement.
_PACKAGES = (
    *("mofo_jax", "jax", "jaxlib", "optax", "numpy", "libtpu"),
    *("jax-cuda13-plugin", "torch"),
)


class Found(NamedTuple):
    """An entry, and the part and the case under which it is stored."""

    part: str
    case: str
    entry: Entry


def file_name(device_kind: str) -> str:
    """Returns a device's name in the form of a file name, `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9.]+", "-", device_kind.lower()).strip("-")


def environment() -> Entry:
    """Returns the machine and the versions of a measurement."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cores": _cores(),
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        **versions,
    }


class Results:
    """The entries of one kind of device, in a JSON file and a picture beside it.

    Attributes:
      path: the JSON file.
      kept: entries given to `put` that did not replace an older measurement.
    """

    def __init__(self, directory: pathlib.Path, device_kind: str) -> None:
        """Makes the directory if it does not exist."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{file_name(device_kind)}.json"
        self.kept: list[Found] = []
        self._device = device_kind

    @property
    def picture(self) -> pathlib.Path:
        """The path of the PNG file beside the JSON file."""
        return self.path.with_suffix(".png")

    def read(self) -> dict[str, dict[str, Entry]]:
        """Returns all entries, by part and case.

        Raises:
          InputError: the file is damaged.
        """
        return (read_json(self.path) or {}).get("parts", {})

    def put(self, part: str, case: str, entry: Entry) -> None:
        """Adds an entry, which replaces an older one of the same case.

        An entry that only has a reason for skipping does not replace a measurement,
        because not every environment can run every part.

        Args:
          part: the part of the benchmark.
          case: a case of the part. If its name begins with that of another case and a
            comma, it belongs to that case: `v5e:2x4, bare step` to `v5e:2x4`.
          entry: the measurements, or `skipped` with a reason.
        """
        with _locked(self.path.parent):
            parts = self.read()
            cases = parts.setdefault(part, {})
            measured = {name for name, old in cases.items() if "skipped" not in old}
            if "skipped" not in entry:
                # The reason for skipping the whole case no longer applies.
                for name in cases.keys() - measured:
                    if case.startswith(f"{name}, "):
                        del cases[name]
            elif any(f"{name}, ".startswith(f"{case}, ") for name in measured):
                self.kept.append(Found(part, case, entry))
                return
            cases[case] = {**entry, "environment": environment()}
            write_json(self.path, {"device": self._device, "parts": parts})


def attempted(case: Callable[[], Entry]) -> Entry:
    """Returns the entry of a case, or the reason under `skipped` if it fails."""
    import jax

    try:
        return case()
    except ImportError as error:
        return {"skipped": f"needs {error.name}, which is not installed"}
    except InputError as error:
        return {"skipped": str(error)}
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        # For example, out of memory, or not supported by the compiler.
        return {"skipped": f"the runtime refused it: {first_line(error)}"}


def first_line(error: Exception) -> str:
    """Returns the first line of an error, since compilers add pages of details."""
    return str(error).strip().partition("\n")[0][:300]


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Locks the directory against other processes that merge results."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _processor() -> str | None:
    """Returns the model of the CPU, which Linux has in a file only."""
    found = None
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
        found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or None


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
