"""Scores against their definitions in NumPy's float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax import scores
from tests.helpers import assert_same_bits, few, random_generator, selected, x64

B1, B2, EPS, EPS_ROOT = 0.9, 0.99, 0.05, 0.3


class Adam:
    """One tensor's moments in float64."""

    def __init__(self, param: np.ndarray) -> None:
        self.param = param.astype(np.float64)
        self.momentum = np.zeros_like(self.param)
        self.second = np.zeros_like(self.param)
        self.count = 0

    def see(self, gradient: np.ndarray) -> None:
        """Updates the moments."""
        self.gradient = gradient.astype(np.float64)
        self.momentum = B1 * self.momentum + (1 - B1) * self.gradient
        self.second = B2 * self.second + (1 - B2) * self.gradient**2
        self.count += 1

    @property
    def step(self) -> np.ndarray:
        """Adam's direction."""
        root = np.sqrt(self.second / (1 - B2**self.count) + EPS_ROOT) + EPS
        return self.momentum / (1 - B1**self.count) / root


FISHER = np.abs(random_generator(7).normal(size=(6, 5))) + 0.1
DEFINITIONS: dict[str, tuple[Any, Callable[[Adam], np.ndarray]]] = {
    "momentum": ("momentum", lambda adam: np.abs(adam.momentum)),
    "gradient": ("gradient", lambda adam: np.abs(adam.gradient)),
    "adam_ratio": ("adam_ratio", lambda adam: np.abs(adam.step)),
    "update": ("update", lambda adam: np.abs(adam.step + 0.1 * adam.param)),
    "relative_momentum": (
        "relative_momentum",
        lambda adam: np.abs(adam.momentum) / (np.abs(adam.param) + 1e-8),
    ),
    "agreement": (
        "agreement",
        lambda adam: np.maximum(adam.momentum * adam.gradient, 0),
    ),
    "gain for v": (
        scores.gain_for_cost(exponent=0.75),
        lambda adam: adam.momentum**2 / (adam.second**0.75 + 1e-16),
    ),
    "a callable": (
        lambda tensor: tensor.momentum * tensor.second_moment,
        lambda adam: np.abs(adam.momentum * adam.second),
    ),
    "a Score": (
        scores.Score(lambda tensor: tensor.param),
        lambda adam: np.abs(adam.param),
    ),
}


@pytest.mark.parametrize("axes", [(), (0,)])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_score_ranks_as_it_is_defined(name: str, axes: tuple) -> None:
    score, definition = DEFINITIONS[name]
    rng = random_generator(3)
    params = rng.normal(size=(6, 5)).astype(np.float32)
    optimizer = mofo_jax.mofo(
        1.0,
        B1,
        B2,
        EPS,
        EPS_ROOT,
        weight_decay=0.1,
        update_fraction=0.4,
        score=score,
        block_axes=axes,
    )
    state, adam = optimizer.init(params), Adam(params)
    update = jax.jit(optimizer.update)
    for _ in range(4):
        gradient = rng.normal(size=(6, 5)).astype(np.float32)
        updates, state = update(gradient, state, params)
        adam.see(gradient)
        expected = definition(adam)
        mask = selected(expected, 0.4, axes) & (expected > 0)
        np.testing.assert_array_equal(np.asarray(updates) != 0, mask)


def test_gain_for_fisher_takes_the_information_from_the_state() -> None:
    gradient = random_generator(1).normal(size=(6, 5)).astype(np.float32)
    inner = optax.chain(
        mofo_jax.baselines.keep_fisher(jnp.asarray(FISHER)), optax.sgd(1.0, 0.9)
    )
    score = scores.gain_for_fisher(0.05)
    optimizer = mofo_jax.momentum_filter(inner, update_fraction=0.3, score=score)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    mask = selected(gradient.astype(np.float64) ** 2 / (FISHER + 0.05), 0.3)
    np.testing.assert_array_equal(np.asarray(updates) != 0, mask)


@pytest.mark.parametrize(
    "score",
    [
        scores.adam_ratio(eps=0.0),
        scores.gain_for_cost(eps=0.0),
        scores.gain_for_fisher(0.0),
    ],
    ids=["adam_ratio", "gain_for_cost", "gain_for_fisher"],
)
def test_coordinates_without_a_gradient_rank_last(score: scores.Score) -> None:
    gradient = jnp.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])
    inner = optax.chain(
        mofo_jax.baselines.keep_fisher(gradient**2), optax.scale_by_adam()
    )
    optimizer = mofo_jax.momentum_filter(inner, update_fraction=0.5, score=score)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_array_equal(updates != 0, gradient != 0)


@pytest.mark.parametrize("score", ["adam_ratio", "padam"])
def test_an_update_outside_of_jit_compiles_once(
    score: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = (
        mofo_jax.baselines.scale_by_padam(exponent=0.4)
        if score == "padam"
        else mofo_jax.scale_by_mofo(score=score)
    )
    gradient = jnp.arange(1.0, 5.0)
    state = optimizer.init(gradient)
    for _ in range(2):
        _, state = optimizer.update(gradient, state)
    with jax.log_compiles():
        for _ in range(3):
            _, state = optimizer.update(gradient, state)
    assert not [text for text in caplog.messages if "Compiling" in text]


@pytest.mark.parametrize("axes", [(), (1,)])
def test_random_masks_change_have_exact_counts_and_are_repeatable(axes: tuple) -> None:
    params = jnp.ones((40, 50))
    optimizer = mofo_jax.mofo(1.0, update_fraction=0.3, score="random", block_axes=axes)
    masks, states = [], [optimizer.init(params)]
    for _ in range(3):
        updates, state = optimizer.update(params, states[-1])
        masks.append(np.asarray(updates) != 0)
        states.append(state)
    for mask in masks:
        if axes:
            np.testing.assert_array_equal(mask.sum(0), 12)
        assert mask.sum() == 600
    # Independent masks overlap in the fraction squared: 180, within 6 deviations.
    shared = [(masks[i] & masks[j]).sum() for i, j in ((0, 1), (1, 2), (0, 2))]
    assert all(abs(number - 180) < 60 for number in shared)
    # A restored state gives the same masks again.
    again, _ = optimizer.update(params, states[2])
    np.testing.assert_array_equal(np.asarray(again) != 0, masks[2])


def test_random_tensors_of_one_tree_and_of_two_seeds_differ() -> None:
    params = {"a": jnp.ones((30, 30)), "b": jnp.ones((30, 30))}

    def mask(seed: int) -> dict[str, np.ndarray]:
        score = scores.random(seed)
        optimizer = mofo_jax.mofo(1.0, update_fraction=0.5, score=score)
        updates, _ = optimizer.update(params, optimizer.init(params))
        return {name: np.asarray(update) != 0 for name, update in updates.items()}

    first, second = mask(0), mask(1)
    assert (first["a"] != first["b"]).any()
    assert (first["a"] != second["a"]).any()


@pytest.mark.parametrize("score", ["momentum", "update", "random"])
def test_unselected_coordinates_take_a_scaled_step(score: str) -> None:
    params, gradients = few(3)
    options = {"update_fraction": 0.25, "score": score}
    rest = mofo_jax.mofo(1e-2, unselected_scale=0.1, **options)
    nothing = mofo_jax.mofo(1e-2, **options)
    everything = optax.adamw(1e-2, weight_decay=0.0)
    states = [tx.init(params) for tx in (rest, nothing, everything)]
    for gradient in gradients:
        found = []
        for i, tx in enumerate((rest, nothing, everything)):
            updates, states[i] = tx.update(gradient, states[i], params)
            found.append(jax.tree.leaves(updates))
        for scaled, kept, whole in zip(*found, strict=True):
            expected = np.where(np.asarray(kept) != 0, whole, 0.1 * np.asarray(whole))
            np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-9)


def test_a_score_of_another_shape_is_an_error() -> None:
    optimizer = mofo_jax.mofo(1e-3, score=lambda tensor: jnp.ones(2))
    params = {"kernel": jnp.ones((3, 4))}
    with pytest.raises(
        ValueError, match=r"shape \(3, 4\) for kernel, got float32\[2\]"
    ):
        optimizer.update(params, optimizer.init(params))
    optimizer = mofo_jax.mofo(1e-3, score="relative_momentum")
    with pytest.raises(ValueError, match="`params` must be given"):
        optimizer.update(params, optimizer.init(params))


def test_scores_pass_through_inject_hyperparams() -> None:
    injected = optax.inject_hyperparams(
        mofo_jax.mofo, hyperparam_dtype=jnp.float32, static_args=()
    )
    score = scores.Score(lambda tensor: tensor.gradient)
    gradients = jnp.array([[3.0, -1.0, 2.0, 0.5], [2.0, -1.0, -3.0, 0.5]])
    for given in (score, "adam_ratio", "random"):
        optimizer = injected(1.0, update_fraction=0.5, score=given)
        state, update = optimizer.init(gradients[0]), jax.jit(optimizer.update)
        _, state = update(gradients[0], state, gradients[0])
        updates, _ = update(gradients[1], state, gradients[1])
        moved = np.flatnonzero(updates)
        assert len(moved) == 2
        # Steady gradients have the largest ratios.
        assert given != "adam_ratio" or list(moved) == [1, 3]


@pytest.mark.parametrize("score", [scores.random(3), scores.random_tensors(3)])
def test_random_scores_depend_on_no_configuration_of_jax(score: Any) -> None:
    params = {str(i): jnp.ones(20, jnp.float32) for i in range(8)}
    optimizer = mofo_jax.mofo(0.1, update_fraction=0.5, block_axes="model", score=score)

    def moved() -> dict[str, np.ndarray]:
        updates, _ = optimizer.update(params, optimizer.init(params))
        return {name: np.flatnonzero(update) for name, update in updates.items()}

    expected = moved()
    with jax.default_prng_impl("unsafe_rbg"):
        assert_same_bits(moved(), expected)
    with x64():
        assert_same_bits(moved(), expected)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("kind", [np.float32, np.complex64])
def test_agreement_has_no_limits_of_range(size: float, kind: type) -> None:
    gradient = (size * np.array([1, -2, 3, 4, -5, 6])).astype(kind)
    if kind is np.complex64:
        gradient = gradient * np.complex64(np.exp(1j))
    optimizer = mofo_jax.momentum_filter(
        optax.sgd(1.0, 0.9), update_fraction=0.5, score="agreement"
    )
    state = optimizer.init(jnp.zeros(6, kind))
    updates, _ = optimizer.update(jnp.asarray(gradient), state)
    np.testing.assert_array_equal(updates != 0, [0, 0, 0, 1, 1, 1])
