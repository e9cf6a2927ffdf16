"""The tests of states in the host's memory, sharded over eight devices."""

import jax

from tests.checkpoints import test_host_memory
from tests.checkpoints.test_host_memory import plain as plain

test_a_checkpoint_restores = (
    test_host_memory.test_a_checkpoint_restores_into_the_hosts_memory
)
test_a_state_moved_within = test_host_memory.test_a_state_moved_within_the_step


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8
