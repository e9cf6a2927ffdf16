"""The cheapest faults, done at every run of the tests; `results.md` has them all."""

import json
import os
import pathlib

import filelock
import pytest

from tests.faults.__main__ import CASES, RESULTS, table
from tests.faults.lab import Case, Lab

QUICK = [case for case in CASES if case.quick]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One lab for all processes that test: its first two runs are dear."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if worker else base) / "lab"
    with filelock.FileLock(path.with_suffix(".lock")):
        path.mkdir(exist_ok=True)
        return Lab(path, f"run-{worker}")


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.fault.replace(" ", "-"))
def test_a_fault_comes_out_as_promised(case: Case, lab: Lab) -> None:
    case.work(lab)


def test_the_table_is_of_these_faults_and_all_came_out_as_promised() -> None:
    rows = json.loads(RESULTS.read_text())
    assert [*rows] == [case.fault for case in CASES]
    assert {fault: row["promised"] for fault, row in rows.items()} == {
        case.fault: case.promise for case in CASES
    }
    assert all(row["passed"] for row in rows.values())
    shown = pathlib.Path(RESULTS).with_suffix(".md").read_text()
    # Its first lines name the version that it was written with.
    assert shown.partition("| fault")[2] == table(rows).partition("| fault")[2]
