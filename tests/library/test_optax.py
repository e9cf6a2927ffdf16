"""Optax's own tests of contributed optimizers, taken from its wheel.

They test that unexpected extra arguments are accepted, that an update compiles once,
convergence, injected hyperparameters, schedules, dtypes, accumulation, and that the
state keeps its type. Optax looks optimizers up by name in `optax.contrib`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from absl.testing import parameterized
from optax import contrib
from optax.contrib import _common_test as upstream

import mofo_jax

pytestmark = pytest.mark.skipif(
    tuple(map(int, optax.__version__.split(".")[:3])) < (0, 2, 8),
    reason="the bodies of these tests have another form before Optax 0.2.8",
)


def with_rate(
    transformation: Callable[[], optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation]:
    """Returns a factory that chains a transformation with a learning rate."""
    return lambda learning_rate: optax.chain(
        transformation(), optax.scale_by_learning_rate(learning_rate)
    )


def filtered(
    inner: Callable[..., optax.GradientTransformation], fraction: float = 0.15
) -> Callable[..., optax.GradientTransformation]:
    """Returns a factory that wraps an optimizer in the filter."""
    return lambda learning_rate: mofo_jax.momentum_filter(
        inner(learning_rate), update_fraction=fraction
    )


# MoFO itself, which runs all test bodies.
MOFO: dict[str, dict[str, Any]] = {
    "default": {},
    "exact ties": {"ties": "exact", "update_fraction": 0.5},
    "decay of all": {"decay": "all", "weight_decay": 1e-5},
}
# Other transformations, for the bodies that accept any factory of a learning rate.
OTHERS: dict[str, tuple[Callable[..., Any], float]] = {
    "in a chain": (with_rate(mofo_jax.scale_by_mofo), 1e-2),
    "filtered sgd": (filtered(functools.partial(optax.sgd, momentum=0.9)), 1e-3),
    "filtered nadam": (filtered(optax.nadam), 1e-2),
    "filtered lion": (filtered(optax.lion), 1e-3),
    "filtered adan": (filtered(optax.adan), 1e-2),
    "filtered padam": (
        filtered(with_rate(mofo_jax.baselines.scale_by_padam), 0.5),
        1e-2,
    ),
    "by Adam's ratio, unselected a tenth": (
        functools.partial(mofo_jax.mofo, score="adam_ratio", unselected_scale=0.1),
        1e-2,
    ),
    "at random": (
        functools.partial(mofo_jax.mofo, score="random", update_fraction=0.5),
        1e-2,
    ),
    "one block for the whole model": (
        functools.partial(mofo_jax.mofo, block_axes="model", update_fraction=0.5),
        1e-2,
    ),
}
OF_ANY_FACTORY = (
    "test_optimizers_accept_extra_args",
    "test_optimizers",
    "test_state_shape_dtype_shard_stability",
)
TARGETS = ("parabola", "rosenbrock", "matrix_parabola", "mixed_tensor_target")
BODIES: list[tuple[str, dict[str, Any]]] = [
    *(("test_optimizers_accept_extra_args", {"wrap": wrap}) for wrap in (True, False)),
    *(
        (
            "test_optimizers",
            {"target": getattr(upstream, f"_setup_{target}"), "dtype": "float32"},
        )
        for target in TARGETS
    ),
    ("test_optimizers_can_be_wrapped_in_inject_hyperparams", {}),
    ("test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such", {}),
    *(
        (name, {"dtype": dtype})
        for name in ("test_preserve_dtype", "test_gradient_accumulation")
        for dtype in ("bfloat16", "float32")
    ),
    *(
        ("test_state_shape_dtype_shard_stability", {"dtype": dtype})
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
    ),
]


def run_body(tests: type, name: str, **arguments: Any) -> None:
    """Runs one of Optax's tests without its parameterized cases."""
    (body,) = {
        function
        for member in vars(tests).values()
        if getattr(function := inspect.unwrap(member), "__name__", None) == name
    }
    upstreams_self = parameterized.TestCase(methodName="run")
    # A body that skips itself must not count as passed.
    upstreams_self.skipTest = pytest.fail
    body(upstreams_self, **arguments)


def test_every_body_is_run() -> None:
    names = {name.rstrip("0123456789") for name in dir(upstream.ContribTest)}
    bodies = {name for name in names if name.startswith("test_")}
    assert bodies == {name for name, _ in BODIES}


def label(value: Any) -> str:
    """Returns the part of a test's name for a case, the same in every process."""
    values = value.values() if isinstance(value, dict) else [value]
    return "-".join(getattr(v, "__name__", str(v)) for v in values)


def run_on(
    monkeypatch: pytest.MonkeyPatch,
    factory: Callable[..., Any],
    arguments: dict[str, Any],
    name: str,
    case: dict[str, Any],
) -> None:
    """Runs one of Optax's bodies on an optimizer."""
    monkeypatch.setattr(contrib, "ours", factory, raising=False)
    run_body(
        upstream.ContribTest,
        name,
        opt_name="ours",
        opt_kwargs=arguments,
        wrapper_name=None,
        wrapper_kwargs=None,
        **case,
    )


@pytest.mark.parametrize(("name", "case"), BODIES, ids=label)
@pytest.mark.parametrize("arguments", MOFO)
def test_mofo(
    arguments: str, name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"learning_rate": 1e-2, **MOFO[arguments]}
    run_on(monkeypatch, mofo_jax.mofo, given, name, case)


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, case in BODIES if name in OF_ANY_FACTORY],
    ids=label,
)
@pytest.mark.parametrize("other", OTHERS)
def test_others(
    other: str, name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory, learning_rate = OTHERS[other]
    run_on(monkeypatch, factory, {"learning_rate": learning_rate}, name, case)


def test_optax_recognizes_the_learning_rate_as_a_schedule() -> None:
    annotation = inspect.signature(mofo_jax.mofo).parameters["learning_rate"].annotation
    assert annotation == optax.ScalarOrSchedule  # Not a string, which Optax ignores.
