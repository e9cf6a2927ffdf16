"""Settings for trainers that do what this repository does not allow itself.

Each folder of tests has the name of its trainer.
"""

import pathlib
from collections.abc import Iterator

import jax
import pytest

# Warnings that are allowed, in the format of pytest's `filterwarnings`.
TOLERATED = {
    "tunix": (
        # Tunix's models give shardings and read parameters in deprecated ways; its
        # trainer finds the mesh.
        "ignore:'sharding' is deprecated:DeprecationWarning",
        "ignore:'.value' access is now deprecated:DeprecationWarning",
        "ignore:jax.interpreters.pxla.thread_resources is:DeprecationWarning",
        "ignore:optax.global_norm is deprecated:DeprecationWarning",
        # Tunix only detects the mesh of this context, which its users therefore need.
        "ignore:.with mesh.. context manager has been deprecated:DeprecationWarning",
        # Tunix's Qwen and Gemma.
        "ignore:jax.experimental.shard_map is deprecated:DeprecationWarning",
        # Qwix.
        "ignore:The 'm.iter_modules..' method is deprecated:DeprecationWarning",
        "ignore:'VariableState' was removed:DeprecationWarning",
    ),
    # Warnings raised in other packages' code do not concern ours.
    "maxtext": (
        "ignore:::(maxtext|orbax|flax|transformers|datasets|absl|grain|google|qwix|jax)",
    ),
    # These import TensorFlow and PyTorch, whose own warnings change frequently.
    "easydel": ("ignore",),
    "kauldron": ("ignore",),
    # The warnings of Levanter and its dependencies have not been examined.
    "levanter": ("ignore",),
}


def trainer_of(path: pathlib.Path) -> str | None:
    """Returns the name of the trainer that a test's path belongs to."""
    return next((part for part in path.parts if part in TOLERATED), None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Allows the warnings of a test's trainer."""
    for tolerated in TOLERATED.get(trainer_of(item.path) or "", ()):
        item.add_marker(pytest.mark.filterwarnings(tolerated))


@pytest.fixture(autouse=True, scope="module")
def settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets the options that trainers need.

    Trainers multiply vectors with stacks of matrices, which needs rank promotion. Most
    of the time of Tunix's tests is compilation, which takes half as long without most
    optimizations. MaxText does not need Google's cloud.
    """
    trainer = trainer_of(request.path)
    if trainer is None:
        yield
        return
    unoptimized = "jax_disable_most_optimizations"
    jax.config.update(unoptimized, trainer == "tunix")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setenv("DECOUPLE_GCLOUD", "TRUE")
        yield
    jax.config.update(unoptimized, False)
