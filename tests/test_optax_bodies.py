"""Optax's own tests of contributed optimizers, run on MoFO as they are in its wheel.

`test_optax_suite.py` says the same rules in our words; here nothing can be lost in
translation. Optax looks optimizers up by name in `optax.contrib`.
"""

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
    reason="Optax wrote these bodies in another way before 0.2.8",
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "default": {},
    "exact ties": {"ties": "exact", "update_fraction": 0.5},
    "decay of all": {"decay": "all", "weight_decay": 1e-5},
}
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


def body(name: str) -> Callable[..., None]:
    """Returns a test's function, without the cases that Optax runs it with."""
    # The cases are numbered: test_optimizers0 is one of test_optimizers.
    (first,) = {
        inspect.unwrap(member)
        for member_name, member in vars(upstream.ContribTest).items()
        if member_name.rstrip("0123456789") == name
    }
    return first


def test_every_body_is_run() -> None:
    names = {name.rstrip("0123456789") for name in dir(upstream.ContribTest)}
    bodies = {name for name in names if name.startswith("test_")}
    assert bodies == {name for name, _ in BODIES}


def label(value: Any) -> str:
    """Returns how a test's name shows a case: the same in every process."""
    values = value.values() if isinstance(value, dict) else [value]
    return "-".join(getattr(v, "__name__", str(v)) for v in values)


@pytest.mark.parametrize(("name", "case"), BODIES, ids=label)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_optaxs_body(
    arguments: str, name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrib, "mofo", mofo_jax.mofo, raising=False)
    # What the bodies take to be `self`; a body that skips itself proves nothing.
    upstreams_self = parameterized.TestCase(methodName="run")
    monkeypatch.setattr(upstreams_self, "skipTest", pytest.fail)
    body(name)(
        upstreams_self,
        opt_name="mofo",
        opt_kwargs={"learning_rate": 1e-2, **ARGUMENTS[arguments]},
        wrapper_name=None,
        wrapper_kwargs=None,
        **case,
    )
