"""Settings for all tests: strict shapes, and the same random examples in each run.

Programs are compiled with LLVM optimization off, since it takes longer than it saves
in the tests. Set `XLA_FLAGS`, even to an empty string, to compile them as for users.
"""

import os
import pathlib

import hypothesis
import jax

from tests.helpers import EIGHT_DEVICES_FLAG, EIGHT_DEVICES_FOLDER, UNOPTIMIZED_FLAGS

# Set before anything is computed, and inherited by processes that tests start.
os.environ.setdefault("XLA_FLAGS", UNOPTIMIZED_FLAGS)

jax.config.update("jax_numpy_rank_promotion", "raise")

# Derandomised, so that failures are reproducible. Without a deadline, because the first
# example of a shape compiles.
hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Ignores tests for eight devices in processes with fewer."""
    elsewhere = EIGHT_DEVICES_FLAG not in os.environ.get("XLA_FLAGS", "")
    return True if elsewhere and collection_path.name == EIGHT_DEVICES_FOLDER else None
