"""Two processes and one resume what four processes saved."""

import pathlib
import shutil

import pytest

from tests.hosts.processes import Run, run

pytestmark = pytest.mark.nightly

MESH = "fsdp=4,tensor=2"


def test_two_and_one_resume_what_four_saved(place: pathlib.Path) -> None:
    told = {"train_only": True}
    copied = told | {"copy": str(place / "copy")}
    four = run(place, "four", 4, 2, mesh=MESH, everywhere=copied)
    for name in ("two", "one"):
        shutil.copytree(place / "copy", place / name / "run")
    two = run(place, "two", 2, 4, mesh=MESH, everywhere=told)
    one = run(place, "one", 1, 2, mesh="fsdp=2", everywhere=told)
    for made in (four, two, one):
        for ended in made.ended:
            assert ended.status == 0, ended.errors
    saved = four.ended[0].seen["saved"]
    for made in (two, one):
        for ended in made.ended:
            assert ended.seen["restored"] == [[2, saved["2"]]]
        check_end(made, four)
    # On the same mesh, bit for bit, however the devices are distributed.
    assert two.ended[1].seen["saved"]["4"] == saved["4"]
    check_rows(one, four)


def check_end(made: Run, four: Run) -> None:
    """They end with the same result as four processes."""
    for row, other in zip(made.metrics, four.metrics, strict=True):
        assert row["step"] == other["step"]
        for key in ("loss", "gradient_norm", "moved_fraction"):
            assert row[key] == pytest.approx(other[key], rel=1e-5)


def check_rows(one: Run, four: Run) -> None:
    """Each of four processes makes two rows of the whole batch."""
    shares = [ended.seen["batches"] for ended in four.ended]
    assert all(len(batch) == 2 for share in shares for batch in share)
    third = [row for share in shares for row in share[2]]
    assert one.ended[0].seen["batches"][0] == third
