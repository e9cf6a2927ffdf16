"""Errors for invalid arguments state their name, their value, and what is allowed."""

from typing import Any

import jax.numpy as jnp
import optax
import pytest

import mofo_jax
from tests.helpers import assert_raises

X = jnp.arange(6.0).reshape(2, 3)
PARAMS = {"kernel": X, "scale": jnp.ones(3)}


def first_update(optimizer: optax.GradientTransformation, params: Any = PARAMS) -> None:
    """Runs a first update, which checks options against the tree of updates."""
    optimizer.update(params, optimizer.init(params), params)


BUILDING: dict[str, tuple[Any, ...]] = {
    "fraction of zero": (
        lambda: mofo_jax.mofo(1e-3, update_fraction=0),
        "`update_fraction` must be in (0, 1], got 0",
    ),
    "fraction above one": (
        lambda: mofo_jax.scale_by_mofo(update_fraction=1.5),
        "`update_fraction` must be in (0, 1], got 1.5",
    ),
    "fraction in a tree": (
        lambda: mofo_jax.mofo(1e-3, update_fraction={"kernel": -0.1, "scale": 1.0}),
        "`update_fraction` must be in (0, 1], got -0.1",
    ),
    "fraction in rules": (
        lambda: mofo_jax.mofo(
            1e-3, update_fraction=mofo_jax.PathRules({"a": 2.0}, default=0.1)
        ),
        "`update_fraction` must be in (0, 1], got 2.0",
    ),
    "fraction of text": (
        lambda: mofo_jax.mofo(1e-3, update_fraction="half"),
        "got 'half'",
    ),
    "axes as an integer": (
        lambda: mofo_jax.mofo(1e-3, block_axes=0),
        "`block_axes` must be",
    ),
    "dense as text": (lambda: mofo_jax.mofo(1e-3, dense="norm"), "`dense` must be"),
    "score": (
        lambda: mofo_jax.mofo(1e-3, score="magnitude"),
        "or a callable, got 'magnitude'",
    ),
    "unselected_scale": (
        lambda: mofo_jax.mofo(1e-3, unselected_scale=1.0),
        "`unselected_scale` must be in [0, 1), got 1.0",
    ),
    "seed": (
        lambda: mofo_jax.scores.random(0.5),  # pyright: ignore[reportArgumentType]
        "`seed` must be an integer, got 0.5",
        TypeError,
    ),
    "every": (
        lambda: mofo_jax.scores.random_tensors(every=-1),
        "`every` must not be negative, got -1",
    ),
    "seed of 65 bits": (
        lambda: mofo_jax.scores.random(2**63),
        "`seed` must be an integer of 64 bits, got 9223372036854775808",
    ),
    "every of 33 bits": (
        lambda: mofo_jax.scores.random_tensors(every=2**31),
        "`every` must be an integer of 32 bits, got 2147483648",
    ),
    "dtype of the momentum": (
        lambda: mofo_jax.mofo(1e-3, mu_dtype="int32"),
        "`mu_dtype` must be a floating-point or complex dtype, got 'int32'",
    ),
    "dtype of Padam's momentum": (
        lambda: mofo_jax.baselines.scale_by_padam(mu_dtype="bool"),
        "`mu_dtype` must be a floating-point or complex dtype, got 'bool'",
    ),
    "dtype of the momentum with Adam's exponent": (
        lambda: mofo_jax.baselines.scale_by_padam(exponent=0.5, mu_dtype="bool"),
        "`mu_dtype` must be a floating-point or complex dtype, got 'bool'",
    ),
    "dtype of the natural gradient's momentum": (
        lambda: mofo_jax.baselines.scale_by_natural_gradient(
            X, damping=1.0, mu_dtype="no dtype"
        ),
        "`mu_dtype` must be a floating-point or complex dtype, got 'no dtype'",
    ),
    "second moment in float16": (
        lambda: mofo_jax.mofo(1e-3, nu_dtype="float16"),
        "`nu_dtype` must have the range of float32, such as bfloat16, got 'float16'",
    ),
    "fraction of a truth value": (
        lambda: mofo_jax.mofo(1e-3, update_fraction=jnp.array(False)),
        "`update_fraction` must be a number in (0, 1] or a schedule, got",
    ),
    "complex share": (
        lambda: mofo_jax.baselines.interpolate_weights(X, X, jnp.array(0.5j)),
        "`share` must be a number, got",
        TypeError,
    ),
    "axes of random tensors": (
        lambda: mofo_jax.scores.random_tensors(
            axes="layer"  # pyright: ignore[reportArgumentType]
        ),
        "`axes` must be a tuple of axis numbers, got 'layer'",
    ),
    "stacked_axes": (
        lambda: mofo_jax.baselines.half_fine_tuning(
            optax.adam(0.1),
            stacked_axes=mofo_jax.block_rules("llama", "head", heads=2),
        ),
        "`stacked_axes` must be a tuple of axis numbers, got (",
    ),
    "categories": (
        lambda: mofo_jax.baselines.half_fine_tuning(
            optax.adam(0.1),
            categories={"a": "x"},  # pyright: ignore[reportArgumentType]
        ),
        "`categories` must be PathRules, got dict",
        TypeError,
    ),
    "a share that is no scalar": (
        lambda: mofo_jax.baselines.interpolate_weights(
            jnp.zeros(2), jnp.ones(2), jnp.array([[0.1], [0.9]])
        ),
        "`share` must be a number, got",
        TypeError,
    ),
    "a scale that is no number": (
        lambda: mofo_jax.mofo(1e-3, unselected_scale="x"),
        "`unselected_scale` must be a number, got 'x'",
        TypeError,
    ),
    "a strength that is no number": (
        lambda: mofo_jax.pull_to_start(None),
        "`strength` must be a number, got None",
        TypeError,
    ),
    "a dtype without order": (
        lambda: mofo_jax.top_fraction_mask(jnp.ones(3, "float8_e4m3fnuz"), 0.5),
        "arrays of the dtype float8_e4m3fnuz cannot be ranked",
        TypeError,
    ),
    "exponent": (
        lambda: mofo_jax.scores.gain_for_cost(exponent=-0.5),
        "`exponent` must be in [0, 1], got -0.5",
    ),
    "damping": (
        lambda: mofo_jax.scores.gain_for_fisher(-1.0),
        "`damping` must be in [0, inf), got -1.0",
    ),
    "b2 of a score": (
        lambda: mofo_jax.scores.adam_ratio(b2=1.0),
        "`b2` must be in [0, 1), got 1.0",
    ),
    "eps of a score": (
        lambda: mofo_jax.scores.gain_for_cost(eps=-1.0),
        "`eps` must be in [0, inf), got -1.0",
    ),
    "ties": (
        lambda: mofo_jax.mofo(1e-3, ties="some"),
        "`ties` must be 'all' or 'exact', got 'some'",
    ),
    "decay": (
        lambda: mofo_jax.mofo(1e-3, decay="none"),
        "`decay` must be 'selected' or 'all', got 'none'",
    ),
    "exact ties of shards": (
        lambda: mofo_jax.mofo(1e-3, ties="exact", axis_name="x"),
        '`axis_name` must be None or `ties` "all"',
    ),
    "b1": (lambda: mofo_jax.mofo(1e-3, b1=1.0), "`b1` must be in [0, 1), got 1.0"),
    "b2": (lambda: mofo_jax.scale_by_mofo(b2=-0.5), "`b2` must be in [0, 1), got -0.5"),
    "eps": (
        lambda: mofo_jax.mofo(1e-3, eps=-1e-8, decay="all"),
        "`eps` must be in [0, inf), got -1e-08",
    ),
    "inner": (
        lambda: mofo_jax.momentum_filter(1e-3),  # pyright: ignore[reportArgumentType]
        "`inner` must be an optax.GradientTransformation, got float",
        TypeError,
    ),
    "regular expression": (
        lambda: mofo_jax.PathRules({"(": True}),
        "`rules` must be a regular expression, got '('",
    ),
    "integers": (
        lambda: mofo_jax.top_fraction_mask(jnp.arange(3), 0.5),
        "`x` must be of a floating-point or complex dtype, got int32",
        TypeError,
    ),
    "fraction of a mask": (
        lambda: mofo_jax.top_fraction_mask(X, 0.0),
        "`fraction` must be in (0, 1], got 0.0",
    ),
    "axis of a mask": (
        lambda: mofo_jax.top_fraction_mask(X, 0.5, block_axes=(2,)),
        "must be axes of a tensor with 2 dimensions, got (2,)",
    ),
    "axis twice": (
        lambda: mofo_jax.top_fraction_mask(X, 0.5, block_axes=(1, -1)),
        "`block_axes` for x must list each axis only once, got (1, -1)",
    ),
    "k of zero": (
        lambda: mofo_jax.magnitude_threshold(X, 0),
        "`k` must be in [1, 6], the size of a block, got 0",
    ),
    "k above the block": (
        lambda: mofo_jax.magnitude_threshold(X, 4, block_axes=(0,)),
        "`k` must be in [1, 3], the size of a block, got 4",
    ),
    "k of a fraction": (
        lambda: mofo_jax.magnitude_threshold(X, 0.5),  # pyright: ignore[reportArgumentType]
        "`k` must be an integer, got 0.5",
        TypeError,
    ),
}

UPDATING: dict[str, tuple[Any, str]] = {
    "axis of a tensor": (
        mofo_jax.mofo(1e-3, block_axes=(1,)),
        "`block_axes` for scale must be axes of a tensor with 1 dimensions, got (1,)",
    ),
    "prefix of another tree": (
        mofo_jax.mofo(1e-3, block_axes={"weight": ()}),
        "`block_axes` must be a pytree prefix of the parameters",
    ),
    "no rule": (
        mofo_jax.mofo(1e-3, dense=mofo_jax.PathRules({"kernel": True})),
        "`dense` has no default and no rule for scale",
    ),
    "schedule out of range": (
        mofo_jax.mofo(1e-3, update_fraction=lambda count: 2.0),
        "`update_fraction` for kernel must be in (0, 1], got 2.0",
    ),
    "no momentum": (
        mofo_jax.momentum_filter(optax.sgd(1e-3)),
        "no momentum",
    ),
    "two momenta": (
        mofo_jax.momentum_filter(optax.chain(optax.trace(0.9), optax.adam(1e-3))),
        "two momenta",
    ),
    "no count": (
        mofo_jax.momentum_filter(
            optax.sgd(1e-3, momentum=0.9), update_fraction=lambda count: 0.5
        ),
        "keeps no `count`",
    ),
}


@pytest.mark.parametrize("case", BUILDING)
def test_invalid_arguments_raise_at_construction(case: str) -> None:
    assert_raises(*BUILDING[case])


@pytest.mark.parametrize("case", UPDATING)
def test_arguments_that_do_not_fit_the_tree_raise_at_update(
    case: str,
) -> None:
    optimizer, words = UPDATING[case]
    assert_raises(lambda: first_update(optimizer), words)


def test_decay_without_parameters_is_optaxs_error() -> None:
    optimizer = mofo_jax.mofo(1e-3, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
