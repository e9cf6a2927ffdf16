"""The distance of parameters from their start, against NumPy's float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from tests.helpers import DTYPES, random_generator, x64
from tests.library.test_diagnostics import GROUPS, members, moved_zoo
from tests.library.test_diagnostics import call as call


def norm(parts: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(part) ** 2) for part in parts)))


def test_distances_by_group(call: Any) -> None:
    params, start = moved_zoo()
    found = call(mofo_jax.distance_from_start, params, start, rules=GROUPS)
    assert found.keys() == {"total", "wide", "deep", "rest"}
    for group, (distance, relative) in found.items():
        pairs = zip(members(params, group), members(start, group), strict=True)
        expected = norm([new - old for new, old in pairs])
        size = norm(members(start, group))
        assert (distance.shape, distance.dtype) == ((), jnp.float32)
        np.testing.assert_allclose(distance, expected, rtol=1e-6)
        np.testing.assert_allclose(relative, expected / size, rtol=1e-6)
    alone = call(mofo_jax.distance_from_start, params, start)
    assert alone.keys() == {"total"}
    np.testing.assert_allclose(alone["total"], found["total"], rtol=1e-6)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_low_precision_parameters_are_summed_in_float32(name: str) -> None:
    dtype = DTYPES[name]
    random = random_generator(4)
    start = np.asarray(300 * random.normal(size=(300, 100)), dtype)
    params = np.asarray(300 * random.normal(size=(300, 100)), dtype)
    old, new = start.astype(np.float64), params.astype(np.float64)
    distance, relative = mofo_jax.distance_from_start(params, start)["total"]
    np.testing.assert_allclose(distance, norm([new - old]), rtol=1e-6)
    np.testing.assert_allclose(relative, norm([new - old]) / norm([old]), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e18])
def test_small_and_large_distances(call: Any, size: float) -> None:
    start = {"a": jnp.full((3, 4), 0.5 * size), "b": jnp.full(4, 1e-3)}
    params = {"a": jnp.full((3, 4), 0.75 * size), "b": jnp.full(4, 1e-3)}
    rules = mofo_jax.PathRules({"a": "a", "b": "b"})
    found = call(mofo_jax.distance_from_start, params, start, rules=rules)
    np.testing.assert_allclose(found["a"].relative, 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["a"].distance, 12**0.5 * size / 4, rtol=1e-5)
    np.testing.assert_allclose(found["total"].distance, found["a"].distance, rtol=1e-5)
    np.testing.assert_allclose(found["b"], (0, 0))


def test_float64_is_measured_in_float64() -> None:
    with x64():
        start = jnp.full(7, 1e100)
        distance, relative = mofo_jax.distance_from_start(3 * start, start)["total"]
        assert distance.dtype == jnp.float64
        np.testing.assert_allclose(distance, 2e100 * 7**0.5, rtol=1e-14)
        np.testing.assert_allclose(relative, 2, rtol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_reach_the_distance(bad: float) -> None:
    params = {"a": jnp.array([bad, 1.0]), "b": jnp.ones(2)}
    start = {"a": jnp.ones(2), "b": jnp.ones(2)}
    found = mofo_jax.distance_from_start(params, start)["total"]
    np.testing.assert_array_equal(found, (bad, bad))


def test_the_relative_distance_from_zero_is_zero_or_infinite() -> None:
    zeros = jnp.zeros(3)
    still = mofo_jax.distance_from_start(zeros, zeros)["total"]
    np.testing.assert_array_equal(still, (0, 0))
    moved = mofo_jax.distance_from_start(zeros + 1, zeros)["total"]
    assert moved.relative == np.inf


def test_integers_and_complex_numbers_have_distances_too() -> None:
    start = jnp.array([1 + 1j, 2, 3, 4])
    params = jnp.array([1 - 1j, 2, 4, 4])
    distance, relative = mofo_jax.distance_from_start(params, start)["total"]
    np.testing.assert_allclose(distance, 5**0.5, rtol=1e-6)
    np.testing.assert_allclose(relative, (5 / 31) ** 0.5, rtol=1e-6)
    moved = mofo_jax.distance_from_start(jnp.array([0, 9]), jnp.array([4, 6]))
    np.testing.assert_allclose(moved["total"].distance, 5, rtol=1e-6)
