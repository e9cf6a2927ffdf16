"""What holds for every test: strict shapes, and examples that are the same each run.

Programs are compiled without LLVM's optimization, which takes longer than the tests
save by it. Set `XLA_FLAGS`, if only to nothing, to compile them as a user's are.
"""

import os
import pathlib

import hypothesis
import jax

from tests.helpers import EIGHT_DEVICES_FLAG, EIGHT_DEVICES_FOLDER, UNOPTIMIZED_FLAGS

# Before anything is computed, and for the processes that tests start.
os.environ.setdefault("XLA_FLAGS", UNOPTIMIZED_FLAGS)

jax.config.update("jax_numpy_rank_promotion", "raise")

# Derandomised, so that a failure is never a matter of luck; without a deadline, since
# the first example of a shape compiles.
hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Leaves what needs eight devices to the process that has them."""
    elsewhere = EIGHT_DEVICES_FLAG not in os.environ.get("XLA_FLAGS", "")
    return True if elsewhere and collection_path.name == EIGHT_DEVICES_FOLDER else None
