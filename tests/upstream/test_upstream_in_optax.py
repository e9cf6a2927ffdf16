"""The contribution among Optax's own tests, and in a copy of Optax."""

import inspect
import os
import pathlib
import subprocess
import sys
from typing import Any

import optax
import pytest
from optax import contrib
from optax.contrib import _common_test as upstream

from examples.upstream import entries, mofo
from tests.library.test_optax import BODIES, label, pytestmark, run_body  # noqa: F401
from tests.upstream import in_optax

LONGEST = 200


@pytest.mark.parametrize(("name", "case"), BODIES, ids=label)
@pytest.mark.parametrize("entry", entries.COMMON, ids=lambda entry: entry["opt_name"])
def test_common(
    entry: dict[str, Any],
    name: str,
    case: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for new in ("mofo", "momentum_filter"):
        monkeypatch.setattr(contrib, new, getattr(mofo, new), raising=False)
    run_body(upstream.ContribTest, name, **entry, **case)


def test_optax_recognizes_the_learning_rate_as_a_schedule() -> None:
    annotation = inspect.signature(mofo.mofo).parameters["learning_rate"].annotation
    assert annotation == optax.ScalarOrSchedule


def test_its_examples_run_in_a_copy_of_optax(tmp_path: pathlib.Path) -> None:
    in_optax.install(tmp_path)
    program = (
        "import doctest, optax\n"
        "from optax.contrib import _mofo\n"
        "assert optax.contrib.mofo is _mofo.mofo\n"
        "print(doctest.testmod(_mofo))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == "TestResults(failed=0, attempted=15)\n", process.stderr


def test_the_file_is_short() -> None:
    text = pathlib.Path(mofo.__file__).read_text()
    assert len(text.splitlines()) <= LONGEST
