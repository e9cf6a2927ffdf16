"""Settings, batches and interruptions of arms that tests train."""

from typing import Any

import jax
import numpy as np
import pytest

from examples.finetune.command.config import Config
from examples.finetune.data.batches import Batch, training_batches
from examples.finetune.data.encoding import Example
from examples.finetune.model import sharding
from examples.finetune.storage.checkpoints import ArmFiles
from examples.finetune.training import own_text
from tests.helpers import random_generator

CONFIG = Config(
    steps=4,
    warmup_steps=1,
    batch_size=8,
    sequence_length=32,
    checkpoint_every=1,
    scan_layers=True,
)


def examples() -> list[Example]:
    """Examples of different lengths and shares of prompt."""
    random = np.random.RandomState(5)
    made = []
    for length in random.randint(4, 30, 40):
        ids = tuple(int(i) for i in random.randint(0, 256, length))
        prompt = int(random.randint(0, length - 1))
        loss = (False,) * prompt + (True,) * (length - prompt)
        made.append(Example(ids[:prompt], ids, loss, ""))
    return made


def batches(config: Config) -> Any:
    return iter(
        training_batches(
            examples(),
            batch_size=config.batch_size * config.accumulation_steps,
            sequence_length=config.sequence_length,
            seed=config.seed,
            pack=config.pack,
        )
    )


def place(batch: Batch) -> dict[str, jax.Array]:
    return jax.device_put(batch, sharding.batch_sharding(sharding.make_mesh("")))


def own_texts(lengths: list[int]) -> list[own_text.Text]:
    """Returns texts that stand for the model's own, all but the first token of each."""
    rng = random_generator(7)
    return [
        own_text.Text([int(i) for i in rng.integers(0, 256, length)], 1)
        for length in lengths
    ]


def interrupt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupts the first arm that logs its third step.

    Returns:
      A list that grows by each step that is logged.
    """
    log, logged = ArmFiles.log, []

    def interrupting(self: ArmFiles, row: dict[str, Any]) -> None:
        logged.append(row["step"])
        if logged == [1, 2, 3]:
            raise KeyboardInterrupt
        log(self, row)

    monkeypatch.setattr(ArmFiles, "log", interrupting)
    return logged
