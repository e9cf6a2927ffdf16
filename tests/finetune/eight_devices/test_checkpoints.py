"""The test of checkpoints again, with arrays that are spread over eight devices."""

import jax

from tests.finetune.storage.test_checkpoints import (
    test_restores_what_was_saved as test_restores_what_was_saved,
)


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8
