"""Optax's own tests of contributed optimizers, run on the inverse covariance."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import mofo_jax
from mofo_jax import InputCovariance
from tests.library.test_optax import BODIES, label, pytestmark, run_on

pytestmark = pytestmark

# The parameters for test bodies that have no target of their own.
PARAMS = {
    "test_optimizers_accept_extra_args": jnp.zeros(2),
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": [
        jnp.zeros((2, 3)),
        jnp.zeros((2, 5, 2)),
    ],
    "test_preserve_dtype": jnp.zeros(2),
    "test_gradient_accumulation": jnp.zeros(2),
    "test_state_shape_dtype_shard_stability": jnp.zeros(3),
    "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": (
        jnp.zeros(3)
    ),
}


def covariances_of(params: Any) -> Any:
    """Returns covariances along an axis of each tensor, the last of three stacked."""

    def one(param: jax.Array) -> InputCovariance:
        axis = param.ndim // 2
        n = param.shape[axis]
        matrix = jnp.full((n, n), 0.5) + jnp.diag(jnp.arange(1.0, n + 1))
        if param.ndim < 3:
            return InputCovariance(matrix, (axis,))
        stack = jnp.stack([matrix] * param.shape[0])
        return InputCovariance(stack, (axis,), (0,))

    return jax.tree.map(one, params)


@pytest.mark.parametrize(("name", "case"), BODIES, ids=label)
@pytest.mark.parametrize("options", [{}, {"block_size": 1}], ids=["whole", "diagonal"])
def test_optaxs_body(
    name: str, case: dict[str, Any], options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = case["target"]("float32")[0] if "target" in case else PARAMS[name]
    covariances = covariances_of(params)

    def chain(
        learning_rate: optax.ScalarOrSchedule, damping: float = 1.0
    ) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            optax.scale_by_adam(),
            mofo_jax.scale_by_inverse_covariance(covariances, damping, **options),
            optax.scale_by_learning_rate(learning_rate),
        )

    given = {"learning_rate": 1e-2, "damping": 1.0}
    run_on(monkeypatch, chain, given, name, case)
