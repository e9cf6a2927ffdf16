"""MaxText's pre-training with MoFO and with AdamW, on one device."""

import numpy as np
import pytest

from tests.trainers.maxtext import maxtext_runs

SCANS = pytest.mark.parametrize("scan", ["scan_layers=true", "scan_layers=false"])


@SCANS
def test_a_fraction_of_one_trains_like_adamw(scan: str) -> None:
    maxtext_runs.assert_equal_runs(
        maxtext_runs.run("everything", scan), maxtext_runs.run("adamw", scan)
    )


@SCANS
def test_the_first_step_moves_what_numpy_selects(scan: str) -> None:
    maxtext_runs.check_first_step(scan)


@SCANS
def test_each_step_moves_the_largest_momenta(scan: str) -> None:
    ours = maxtext_runs.run("mofo", scan)
    for step in range(1, maxtext_runs.STEPS):
        maxtext_runs.assert_the_largest_moved(
            ours.params[step - 1],
            ours.params[step],
            maxtext_runs.momenta(ours.states[step]),
        )
    assert ours.losses[-1] < ours.losses[0]


def test_layers_are_scanned_on_the_second_axis() -> None:
    params = maxtext_runs.run("mofo", "scan_layers=true").params[0]
    assert params["decoder/layers/self_attention/query/kernel"].shape == (64, 3, 4, 16)
    apart = maxtext_runs.run("mofo", "scan_layers=false").params[0]
    assert apart["decoder/layers_2/self_attention/query/kernel"].shape == (64, 4, 16)
    assert np.size(params["decoder/decoder_norm/scale"]) == 64
