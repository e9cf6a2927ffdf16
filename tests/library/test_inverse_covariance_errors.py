"""Errors for arguments that are not covariances, or not those of the parameters."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from mofo_jax import InputCovariance

RULE = mofo_jax.scale_by_inverse_covariance


def raises(kind: type[Exception], message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=message):
        RULE(*args, **options)


def with_matrix(matrix: Any, *axes: tuple[int, ...]) -> dict[str, Any]:
    return {"kernel": InputCovariance(jnp.asarray(matrix), *(axes or ((0,),)))}


def test_wrong_arguments() -> None:
    good = with_matrix(np.eye(3, dtype=np.float32))
    for damping in (0, -0.1, float("nan"), float("inf")):
        message = f"`damping` must be in (0, inf), got {damping!r}"
        raises(ValueError, re.escape(message), good, damping)
    for damping in (None, "0.3", np.ones(2)):
        message = f"`damping` must be a number in (0, inf), got {damping!r}"
        raises(ValueError, re.escape(message), good, damping)
    raises(ValueError, "`dtype` must be a floating-point dtype", good, dtype="int8")
    for name in ("block_size", "rank"):
        for value in (0, 2.0, True, jnp.int32(4)):
            message = f"`{name}` must be a positive integer or None, got {value!r}"
            with pytest.raises(ValueError) as caught:
                RULE(good, **{name: value})
            assert str(caught.value) == message
    raises(
        TypeError,
        "`covariances` for kernel must be an InputCovariance or None, got ArrayImpl",
        {"kernel": jnp.eye(3)},
    )
    raises(
        ValueError, "`covariances` must hold an InputCovariance, got none", {"a": None}
    )
    shared = [InputCovariance(n * jnp.eye(3), (0,), (), "a") for n in (1, 2)]
    raises(
        ValueError,
        "`covariances` for b and a must be equal, since they have the same `source`",
        dict(zip("ab", shared, strict=True)),
    )


@pytest.mark.parametrize(
    ("matrix", "axes", "message"),
    [
        (
            np.ones((3, 4)),
            ((0,),),
            r"square matrices with 0 leading axes, got shape \(3, 4\)",
        ),
        (np.ones((2, 3, 3)), ((0,),), "square matrices with 0 leading axes"),
        (np.eye(3), ((1,), (0,)), "square matrices with 1 leading axes"),
        (np.eye(3, dtype=int), ((0,),), "have a floating-point dtype, got int"),
        (np.diag([1, np.nan]), ((0,),), "for kernel must be finite"),
        (np.diag([1, np.inf]), ((0,),), "for kernel must be finite"),
        (np.array([[1.0, 0.5], [0.2, 1]]), ((0,),), "for kernel must be symmetric"),
        (np.diag([1.0, -1.0]), ((0,),), "have a nonnegative diagonal"),
        (np.ones((2, 3, 3)), ((1,), (1,)), "must have different axes, those of the"),
        (np.ones((2, 2, 3, 3)), ((2,), (1, 0)), "those of the batch ascending"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("traced", [False, True])
def test_invalid_covariances(
    matrix: Any, axes: Any, message: str, traced: bool
) -> None:
    covariances = with_matrix(matrix, *axes)

    def build() -> jax.Array:
        RULE(covariances)
        return jnp.zeros(3)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build) if traced else build()


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_the_unit_of_a_matrix_does_not_matter_for_its_symmetry(unit: float) -> None:
    rounded, wrong = (unit * np.array([[2, 1], [1 + e, 2]]) for e in (1e-3, 1e-2))
    RULE(with_matrix(np.float32(rounded), (0,)))
    with pytest.raises(ValueError, match="for kernel must be symmetric"):
        RULE(with_matrix(np.float32(wrong), (0,)))


def test_covariances_of_another_model() -> None:
    optimizer = RULE(with_matrix(np.eye(3, dtype=np.float32)))
    state = optimizer.init({"kernel": jnp.ones((3, 2))})
    message = (
        r"`covariances` for kernel of shape \(2, 3\) must be matrices along its axes "
        r"\(0,\), for each index of \(\), got shape \(3, 3\)"
    )
    wrong = {"kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=message):
        optimizer.init(wrong)
    with pytest.raises(ValueError, match=message):
        optimizer.update(wrong, state)
    message = "must have the structure of the parameters, got nothing for weight"
    with pytest.raises(ValueError, match=message):
        optimizer.init({"weight": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"of shape \(\) must be matrices along"):
        optimizer.init({"kernel": jnp.ones(())})


def test_two_covariances_of_one_path() -> None:
    covariance = InputCovariance(jnp.eye(3), (0,))
    message = "must have different paths for all parameters, got two of a/b"
    with pytest.raises(ValueError, match=message):
        RULE({"a/b": covariance, "a": {"b": covariance}})


@pytest.mark.parametrize("longer", ["a/b", "a/b/c"])
def test_a_path_that_continues_another(longer: str) -> None:
    covariance = InputCovariance(jnp.eye(3), (0,))
    message = "must not have a parameter whose path continues .* got " + longer
    with pytest.raises(ValueError, match=message):
        RULE({"a": covariance, longer: covariance})


def test_a_covariance_has_no_negative_eigenvalue() -> None:
    negative = np.array([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(
        ValueError, match="`covariances` for kernel must be positive sem"
    ):
        RULE(with_matrix(negative)).init({"kernel": jnp.ones((2, 2))})
