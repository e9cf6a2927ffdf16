"""MaxText on eight devices: Auto and Explicit meshes, and the state over data."""

import importlib
import pathlib
from typing import Any

import pytest

MESHES = {
    "auto": ("ici_fsdp_parallelism=4", "ici_tensor_parallelism=2"),
    "explicit": (
        "ici_fsdp_parallelism=4",
        "ici_tensor_parallelism=2",
        "shard_mode=explicit",
    ),
    "state over data": (
        "ici_data_parallelism=4",
        "ici_fsdp_parallelism=1",
        "ici_tensor_parallelism=2",
        "shard_optimizer_over_data=true",
    ),
}
# Layers that are not scanned take longer to compile and have the same sharding.
CASES = [
    ("auto", "scan_layers=true"),
    ("auto", "scan_layers=false"),
    ("explicit", "scan_layers=true"),
    ("state over data", "scan_layers=true"),
]


@pytest.fixture(scope="module")
def maxtext_runs() -> Any:
    """Imported here, so that tests are skipped without MaxText instead of failing."""
    return importlib.import_module("tests.trainers.maxtext.maxtext_runs")


@pytest.mark.parametrize(("mesh", "scan"), CASES)
def test_a_fraction_of_one_trains_like_adamw(
    mesh: str, scan: str, maxtext_runs: Any
) -> None:
    arguments = (*MESHES[mesh], scan)
    maxtext_runs.assert_equal_runs(
        maxtext_runs.run("everything", *arguments),
        maxtext_runs.run("adamw", *arguments),
    )


@pytest.mark.parametrize(("mesh", "scan"), CASES)
def test_the_first_step_moves_what_numpy_selects(
    mesh: str, scan: str, maxtext_runs: Any
) -> None:
    maxtext_runs.check_first_step(*MESHES[mesh], scan)


@pytest.mark.parametrize("mesh", ["auto", "explicit"])
def test_matrices_are_sharded_and_scale_the_first_step(
    mesh: str, maxtext_runs: Any, tmp_path: pathlib.Path
) -> None:
    given = *MESHES[mesh], "scan_layers=true"
    matrices = maxtext_runs.check_scaled_step(tmp_path, *given)
    assert len(matrices) == 5
    for matrix in matrices:
        rows = matrix.sharding.shard_shape(matrix.shape)[-2]
        assert rows == matrix.shape[-2] // 8
