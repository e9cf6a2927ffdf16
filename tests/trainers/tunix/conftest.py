"""What Tunix, and what it brings along, do that this repository forbids itself."""

from collections.abc import Iterator

import jax
import pytest

DEPRECATED = (
    # Tunix's models name shardings and read parameters so; its trainer finds the mesh.
    "'sharding' is deprecated",
    "'.value' access is now deprecated",
    "jax.interpreters.pxla.thread_resources is deprecated",
    "optax.global_norm is deprecated",
    # Tunix sees no mesh but one of this context, which its users therefore write.
    ".with mesh.. context manager has been deprecated",
    # Qwix.
    "The 'm.iter_modules..' method is deprecated",
    "'VariableState' was removed",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Lets these warnings pass, and no others."""
    for message in DEPRECATED:
        item.add_marker(
            pytest.mark.filterwarnings(f"ignore:{message}:DeprecationWarning")
        )


@pytest.fixture(autouse=True, scope="module")
def settings() -> Iterator[None]:
    """Lets Tunix's Llama multiply vectors with stacks of matrices, and compiles fast.

    Compiling takes most of these tests' time, and half as long so; what is computed
    does not depend on it.
    """
    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update(name, False)
