"""MoFO resumes MaxText's checkpoints of AdamW, and AdamW those of MoFO."""

import pathlib

import numpy as np

from tests.trainers.maxtext import maxtext_runs


def test_mofo_resumes_a_run_of_adamw_and_back(tmp_path: pathlib.Path) -> None:
    # A run with the same name is resumed, and its metrics are appended.
    adamw, mofo = (maxtext_runs.OPTIMIZERS[name] for name in ("adamw", "mofo"))
    maxtext_runs.run_program(tmp_path, "resumed", *adamw, steps=2)
    maxtext_runs.run_program(tmp_path, "resumed", *mofo, steps=4)
    resumed = maxtext_runs.run_program(tmp_path, "resumed", *adamw, steps=5)
    assert len(resumed.losses) == len(resumed.params) == 5
    whole = maxtext_runs.run("adamw", steps=3)
    # In the third step the moments equal those of an unbroken run of AdamW, so they
    # were restored, and MoFO selects from them.
    assert resumed.losses[:3] == whole.losses
    third, desired = resumed.states[2], whole.states[2]
    assert third.keys() == desired.keys()
    for path, array in third.items():
        np.testing.assert_array_equal(array, desired[path], path)
    for step in (2, 3):
        maxtext_runs.assert_the_largest_moved(
            resumed.params[step - 1],
            resumed.params[step],
            maxtext_runs.momenta(resumed.states[step]),
        )
    assert resumed.states[4]["0/count"] == 5
    # AdamW moves all coordinates again.
    for path, array in resumed.params[4].items():
        assert np.mean(array != resumed.params[3][path]) > 0.9, path
