"""Steps that are skipped, in an arm's metrics."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from examples.finetune.command.config import Arm
from examples.finetune.data.batches import Batch
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.pretrained import Source
from examples.finetune.storage.checkpoints import ArmFiles
from examples.finetune.training import movement, train
from examples.finetune.training.optimizers import schedule
from tests.finetune.arms import CONFIG, batches, place


@pytest.mark.parametrize("spoilt", [{1}, {3}, {1, 2, 3, 4, 5}])
def test_skipped_steps_count_for_nothing(
    tiny_source: Source, tmp_path: pathlib.Path, spoilt: set[int]
) -> None:
    given = {"steps": 5, "checkpoint_every": 5, "max_skipped_steps": 5}
    config = dataclasses.replace(CONFIG, **given)
    mesh = sharding.make_mesh("")
    built = pretrained.build(tiny_source, scan_layers=True, mesh=mesh)
    graph, params = parameters.split(built)
    numbers = iter(range(1, 6))

    def spoil(batch: Batch) -> dict[str, jax.Array]:
        factor = np.nan if next(numbers) in spoilt else 1.0
        return place({**batch, "positions": batch["positions"] * np.float32(factor)})

    arm = Arm("mofo", "mofo", 1e-3, replay=False)
    with ArmFiles(tmp_path, arm.name, arm.peak) as files:
        data = train.Given(batches(config), spoil)
        _, position = train.train(config, arm, graph, params, data, files)
        rows = files.metrics()
    assert position.skipped == len(spoilt)
    assert {row["step"] for row in rows if row["skipped"]} == spoilt
    rate, made = schedule(config, arm.peak), 0
    for row in rows:
        # The optimizer's own count does not include skipped steps either.
        assert row["learning_rate"] == pytest.approx(float(np.asarray(rate(made))))
        assert ("mask_overlap" in row) == (made > 0 and not row["skipped"])
        made += not row["skipped"]
    found = movement.of_steps(rows)
    share = 0.15 if made else 0
    assert found["selected_share"]["mlp"] == pytest.approx(share, abs=0.001)
    assert found["moved_fraction"]["per_step"] == pytest.approx(share, abs=0.02)
    kept = [row["mask_overlap"] for row in rows if "mask_overlap" in row]
    assert found["mask_overlap"] == (pytest.approx(np.mean(kept)) if kept else None)
