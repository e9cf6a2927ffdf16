"""The cheapest faults; `results.md` has the results of all."""

import os

import filelock
import pytest

from tests.faults.__main__ import CASES
from tests.faults.lab import Case, Lab

pytestmark = pytest.mark.nightly

QUICK = [case for case in CASES if case.quick]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab shared by all test processes, since its first two runs take long."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if worker else base) / "lab"
    with filelock.FileLock(path.with_suffix(".lock")):
        path.mkdir(exist_ok=True)
        return Lab(path, f"run-{worker}")


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.fault.replace(" ", "-"))
def test_a_fault_has_the_promised_outcome(case: Case, lab: Lab) -> None:
    case.work(lab)
