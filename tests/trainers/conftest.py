"""What trainers, and what they bring along, do that this repository forbids itself.

A folder of tests has the name of its trainer.
"""

import pathlib
from collections.abc import Iterator

import jax
import pytest

# What may warn, as pytest's `filterwarnings` takes it, and why.
TOLERATED = {
    "tunix": (
        # Tunix's models name shardings and read parameters so; its trainer finds the
        # mesh.
        "ignore:'sharding' is deprecated:DeprecationWarning",
        "ignore:'.value' access is now deprecated:DeprecationWarning",
        "ignore:jax.interpreters.pxla.thread_resources is:DeprecationWarning",
        "ignore:optax.global_norm is deprecated:DeprecationWarning",
        # Tunix sees no mesh but one of this context, which its users therefore write.
        "ignore:.with mesh.. context manager has been deprecated:DeprecationWarning",
        # Qwix.
        "ignore:The 'm.iter_modules..' method is deprecated:DeprecationWarning",
        "ignore:'VariableState' was removed:DeprecationWarning",
    ),
    # Raised in the code of others, a warning says nothing about ours.
    "maxtext": (
        "ignore:::(maxtext|orbax|flax|transformers|datasets|absl|grain|google|qwix|jax)",
    ),
    # They import TensorFlow and PyTorch, whose own warnings change from day to day.
    "easydel": ("ignore",),
    "kauldron": ("ignore",),
}


def trainer_of(path: pathlib.Path) -> str | None:
    """Returns the trainer whose tests a path has."""
    return next((part for part in path.parts if part in TOLERATED), None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Lets the warnings of a trainer pass, and no others."""
    for tolerated in TOLERATED.get(trainer_of(item.path) or "", ()):
        item.add_marker(pytest.mark.filterwarnings(tolerated))


@pytest.fixture(autouse=True, scope="module")
def settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets trainers multiply vectors with stacks of matrices.

    Compiling takes most of Tunix's tests' time, and half as long without most
    optimizations; what is computed does not depend on it. MaxText can do without
    Google's cloud.
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
