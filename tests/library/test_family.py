"""The filter around every kind of Optax transformation, against its definition."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import mofo_jax
from tests.helpers import random_generator, selected

SHAPES = {"kernel": (6, 8), "other": (5, 4), "bias": (8,)}
LABELS = {"kernel": "a", "other": "b", "bias": "b"}
INNER: dict[str, Callable[[], Any]] = {
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "nadamw": lambda: optax.nadamw(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "sgd with momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "nesterov sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adabelief": lambda: optax.adabelief(1e-2),
    "adan": lambda: optax.adan(1e-2),
    "muon": lambda: contrib.muon(1e-2),
    "padam": lambda: optax.chain(
        mofo_jax.baselines.scale_by_padam(exponent=1.0),
        optax.scale_by_learning_rate(1e-2),
    ),
    "a chain with clipping": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(1e-2)
    ),
    "guarded": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "accumulated": lambda: optax.MultiSteps(optax.adam(1e-2), 2),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(1e-2),
    "partition": lambda: optax.partition(
        {"a": optax.adam(1e-2), "b": optax.lion(1e-2)}, LABELS
    ),
}
# The names of momenta in Optax's states.
MOMENTA = ("mu", "trace", "m")


def tree(seed: int) -> dict[str, jax.Array]:
    """Returns a tree of random numbers."""
    rng = random_generator(seed)
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()}


def momentum(state: Any, name: str) -> np.ndarray:
    """Returns a tensor's momentum, found in the state by the names in its path."""
    found = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if getattr(path[-1], "key", None) == name
        and any(getattr(entry, "name", None) in MOMENTA for entry in path)
    ]
    (only,) = found
    return only


@pytest.mark.parametrize("ties", ["all", "exact"])
@pytest.mark.parametrize("name", INNER)
def test_the_filter_keeps_the_largest_momenta_of_any_optimizer(
    name: str, ties: str
) -> None:
    inner = optax.with_extra_args_support(INNER[name]())
    filtered = mofo_jax.momentum_filter(INNER[name](), update_fraction=0.3, ties=ties)
    params = tree(0)
    states = [inner.init(params), filtered.init(params)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for step in range(3):
        gradient = tree(step + 1)
        proposed, states[0] = jax.jit(inner.update)(gradient, states[0], params)
        updates, states[1] = jax.jit(filtered.update)(gradient, states[1], params)
        for leaf in SHAPES:
            ranked = momentum(states[0], leaf)
            mask = selected(ranked, 0.3, (), ties) & (ranked != 0)
            expected = np.where(mask, proposed[leaf], 0)
            np.testing.assert_allclose(updates[leaf], expected, rtol=2e-5, atol=1e-8)


def test_an_injected_scale_of_zero_leaves_nothing_of_infinity() -> None:
    gradients = jnp.array([1e-30, 2.0, 3.0, 1e-30])
    injected = optax.inject_hyperparams(mofo_jax.mofo)
    for make in (mofo_jax.mofo, injected):
        # Adam's steps of the first and the last coordinate are infinite.
        optimizer = make(0.1, update_fraction=0.5, eps=0.0)
        updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
        np.testing.assert_allclose(updates, [0, -0.1, -0.1, 0], rtol=1e-5)


def test_an_optimizer_without_momentum_is_an_error() -> None:
    inner = contrib.schedule_free_adamw(1e-2)
    params = tree(0)
    filtered = mofo_jax.momentum_filter(inner)
    with pytest.raises(
        ValueError, match=r"no momentum for .*choose a `score` that needs none"
    ):
        filtered.update(params, filtered.init(params), params)
    by_update = mofo_jax.momentum_filter(inner, score="update", update_fraction=0.3)
    state = by_update.init(params)
    proposed, _ = inner.update(params, state, params)
    updates, _ = by_update.update(params, state, params)
    for leaf in SHAPES:
        expected = np.where(selected(proposed[leaf], 0.3), proposed[leaf], 0)
        np.testing.assert_allclose(updates[leaf], expected, rtol=1e-6)


@pytest.mark.parametrize("score", ["momentum", "update", "agreement"])
@pytest.mark.parametrize(
    "blocks", [(), (0,), "model", ("rows", 0), (mofo_jax.AxisParts(-1, 2),)]
)
def test_scores_and_blocks_combine(score: str, blocks: Any) -> None:
    params = {"a": tree(0)["kernel"], "b": tree(1)["kernel"]}
    grads = {"a": tree(2)["kernel"], "b": tree(3)["kernel"]}
    optimizer = mofo_jax.mofo(
        1.0, update_fraction=0.3, score=score, block_axes=blocks, unselected_scale=0.5
    )
    adam = optax.adam(1.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    proposed, state = adam.update(grads, adam.init(params), params)
    scored = {
        "momentum": lambda n: np.asarray(state[0].mu[n]),
        "update": lambda n: np.asarray(proposed[n]),
        "agreement": lambda n: np.asarray(state[0].mu[n] * grads[n]),
    }[score]
    whole = np.stack([scored("a"), scored("b")], axis=1)
    mask = {
        "()": functools.partial(selected, whole, 0.3, (1,)),
        "(0,)": functools.partial(selected, whole, 0.3, (0, 1)),
        "model": functools.partial(selected, whole, 0.3, ()),
        "('rows', 0)": functools.partial(selected, whole, 0.3, (0,)),
    }.get(
        str(blocks),
        lambda: selected(whole.reshape(6, 2, 2, 4), 0.3, (1, 2)).reshape(6, 2, 8),
    )()
    for i, leaf in enumerate("ab"):
        step = np.asarray(proposed[leaf])
        expected = np.where(mask[:, i] & (whole[:, i] != 0), step, 0.5 * step)
        np.testing.assert_allclose(updates[leaf], expected, rtol=1e-5)
