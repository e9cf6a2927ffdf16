"""What four processes saved two go on with, and one."""

import pytest

from tests.hosts.conftest import Run


def test_two_and_one_restore_what_four_saved(
    four: Run, two_go_on: Run, one_goes_on: Run
) -> None:
    saved = four.ended[0].seen["saved"]
    for run in (four, two_go_on, one_goes_on):
        for ended in run.ended:
            assert ended.status == 0, ended.errors
    for run in (two_go_on, one_goes_on):
        for ended in run.ended:
            assert ended.seen["restored"] == [[2, saved["2"]]]


def test_they_end_where_four_would_have(
    four: Run, two_go_on: Run, one_goes_on: Run
) -> None:
    wanted = four.ended[0].seen["saved"]["4"]
    # The same mesh.
    assert two_go_on.ended[1].seen["saved"]["4"] == wanted
    for run in (two_go_on, one_goes_on):
        for row, other in zip(run.metrics, four.metrics, strict=True):
            assert row["step"] == other["step"]
            for key in ("loss", "gradient_norm", "moved_fraction"):
                assert row[key] == pytest.approx(other[key], rel=1e-5)


def test_each_of_four_makes_its_two_rows(four: Run, one_goes_on: Run) -> None:
    shares = [ended.seen["batches"] for ended in four.ended]
    assert all(len(batch) == 2 for share in shares for batch in share)
    third = [row for share in shares for row in share[2]]
    assert one_goes_on.ended[0].seen["batches"][0] == third
