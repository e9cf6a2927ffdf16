"""Checkpoints from eight devices, restored on fewer devices with other shardings.

Gradients are given, so that the arithmetic is the same on any number of devices. What a
step selects, moves and keeps must then be the same bit for bit.
"""

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from examples.trainers.orbax_checkpoints import describe
from tests.checkpoints import runs
from tests.checkpoints.apis import APIS
from tests.helpers import EIGHT_DEVICES_FLAG, assert_same_bits

NEXT = runs.BEFORE + 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any, Any]:
    """Returns the path of a checkpoint, its contents, and those one step later."""
    path = tmp_path_factory.mktemp("saved")
    mesh = runs.mesh_of(8)
    kept = runs.start(mesh, axis=0)
    for api, opened in APIS.items():
        with opened(path / api) as checkpoints:
            checkpoints.save(runs.BEFORE, kept)
    return path, kept, runs.train(kept, mesh, 0, [NEXT])


def moved(before: Any, after: Any) -> Any:
    """Returns the coordinates of the parameters that a step moved."""
    return jax.tree.map(
        lambda x, y: np.asarray(x) != np.asarray(y), before["params"], after["params"]
    )


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("devices", "axis_type"),
    [(4, AxisType.Auto), (2, AxisType.Explicit), (1, AxisType.Auto)],
    ids=str,
)
def test_fewer_devices_resume_bit_for_bit(
    devices: int, axis_type: AxisType, api: str, saved: tuple[pathlib.Path, Any, Any]
) -> None:
    path, kept, after = saved
    mesh = runs.mesh_of(devices, axis_type)
    wanted = describe(runs.OPTIMIZER, runs.place(runs.arrays(0), mesh, axis=1))
    with APIS[api](path / api) as checkpoints:
        restored = checkpoints.restore(runs.BEFORE, wanted)
    assert_same_bits(restored, kept)
    for leaf, like in zip(
        jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        assert len(leaf.sharding.device_set) == devices
    matrix = restored["state"][0].mu["matrix"]
    assert matrix.addressable_shards[0].data.shape == (16, 24 // devices)
    assert kept["params"]["matrix"].addressable_shards[0].data.shape == (2, 24)
    following = runs.train(restored, mesh, 1, [NEXT])
    assert_same_bits(moved(restored, following), moved(kept, after))
    assert_same_bits(following, after)


def test_a_process_with_one_device_resumes(
    saved: tuple[pathlib.Path, Any, Any],
) -> None:
    path, kept, after = saved
    flags = os.environ["XLA_FLAGS"].replace(EIGHT_DEVICES_FLAG, "").strip()
    process = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.one_device", str(path / "manager")],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2_000:]
    for name, tree in (("restored", kept), ("following", after)):
        leaves = np.load(path / "manager" / f"{name}.npz")
        leaves = [leaves[number] for number in leaves]
        expected = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        assert [x.tobytes() for x in leaves] == [x.tobytes() for x in expected]


def test_there_are_eight_devices_and_a_run_is_under_way(
    saved: tuple[pathlib.Path, Any, Any],
) -> None:
    assert EIGHT_DEVICES_FLAG in os.environ["XLA_FLAGS"]
    assert jax.device_count() == 8
    _, kept, after = saved
    assert int(kept["state"][0].count) == runs.BEFORE
    shares = jax.tree.map(np.mean, moved(kept, after))
    assert all(0 < share < 0.4 for share in jax.tree.leaves(shares))
