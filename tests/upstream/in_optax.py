"""The contribution as part of Optax's source."""

import pathlib
import re
import shutil

import optax

from examples.upstream import mofo

ALIASES = ("adamw", "MaskOrFn")
BASES = (
    *("GradientTransformation", "GradientTransformationExtraArgs"),
    *("ScalarOrSchedule", "with_extra_args_support"),
)
IMPORTS = """\
from optax._src import alias
from optax._src import base
import optax.tree
import optax.tree_utils"""


def source() -> str:
    """Returns the file with its imports replaced by those within Optax."""
    text = pathlib.Path(mofo.__file__).read_text()
    # Names in docstrings follow a backtick.
    for module, names in (("alias", ALIASES), ("base", BASES)):
        uses = rf"(?<!`)\boptax\.({'|'.join(names)})\b"
        text = re.sub(uses, rf"{module}.\1", text)
    return re.sub("^import optax$", IMPORTS, text, count=1, flags=re.MULTILINE)


def install(directory: pathlib.Path) -> None:
    """Copies the installed Optax into a directory and adds the contribution."""
    (package,) = optax.__path__
    ignored = shutil.ignore_patterns("*_test.py", "__pycache__")
    shutil.copytree(package, directory / "optax", ignore=ignored)
    contrib = directory / "optax" / "contrib"
    (contrib / "_mofo.py").write_text(source())
    with (contrib / "__init__.py").open("a") as exports:
        for name in ("mofo", "momentum_filter"):
            exports.write(f"from optax.contrib._mofo import {name}\n")
