"""The Fisher information: its estimate, its copy in a state, and its use in a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax
from mofo_jax.baselines import (
    elastic_weight_consolidation,
    fisher_information,
    keep_fisher,
    scale_by_natural_gradient,
)
from tests.helpers import (
    assert_same_bits,
    few,
    float32_zoo,
    random_generator,
    run,
    types,
    zoo_gradients,
    zoo_params,
)

PROBABILITIES = np.array([0.5, 0.3, 0.2])


def log_likelihood(params: Any, sample: Any) -> jax.Array:
    """Returns a linear classifier's log-likelihood of a class given an input."""
    logits = sample["input"] @ params["kernel"] + params["bias"]
    return jax.nn.log_softmax(logits.astype(jnp.float32))[sample["class"]]


def classifier(count: int, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Returns the classifier's parameters, and inputs with classes sampled from it."""
    rng = random_generator()
    params = {
        "kernel": jnp.asarray(rng.normal(size=(4, 3)), dtype),
        "bias": jnp.asarray(rng.normal(size=3), dtype),
        "nothing": None,
    }
    inputs = jnp.asarray(rng.normal(size=(count, 4)), dtype)
    logits = inputs @ params["kernel"] + params["bias"][None]
    classes = jax.random.categorical(jax.random.key(0), logits)
    return params, {"input": inputs, "class": classes}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mean_of_squared_gradients(dtype: str, jit: bool) -> None:
    params, samples = classifier(20, dtype)
    estimate = jax.jit(fisher_information, static_argnums=0) if jit else None
    actual = (estimate or fisher_information)(log_likelihood, params, samples)
    kernel, bias, x = (
        np.asarray(a, np.float64)
        for a in (params["kernel"], params["bias"], samples["input"])
    )
    logits = x @ kernel + bias
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_logit = np.eye(3)[np.asarray(samples["class"])] - softmax
    by_kernel = x[:, :, None] * by_logit[:, None, :]
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for name, gradient in (("bias", by_logit), ("kernel", by_kernel)):
        assert actual[name].dtype == jnp.float32
        expected = np.mean(gradient**2, axis=0)
        np.testing.assert_allclose(actual[name], expected, rtol=tolerance, atol=1e-3)
    assert actual["nothing"] is None


def test_samples_of_the_model_give_its_fisher_information() -> None:
    logits = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))
    tokens = jax.random.categorical(jax.random.key(1), logits, shape=(4000,))

    def log_likelihood(logits: jax.Array, token: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(logits)[token]

    actual = fisher_information(log_likelihood, logits, tokens)
    # The standard error of a mean of 4000 squares in [0, 1] is at most 1/sqrt(4000).
    expected = PROBABILITIES * (1 - PROBABILITIES)
    np.testing.assert_allclose(actual, expected, atol=0.02)


def test_complex_parameters_have_a_real_fisher_information() -> None:
    params = jnp.array([1 + 2j, 3 - 1j])

    def log_likelihood(params: jax.Array, sample: jax.Array) -> jax.Array:
        return jnp.sum(jnp.real(sample * params))

    samples = jnp.array([[3 + 4j, 0], [0, 1j]])
    actual = fisher_information(log_likelihood, params, samples)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, [12.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "samples",
    [
        {},
        jnp.zeros((0, 3)),
        jnp.float32(1),
        {"x": jnp.zeros((2, 3)), "y": jnp.zeros((3, 2))},
    ],
    ids=["nothing", "no sample", "scalar", "two lengths"],
)
def test_samples_must_have_one_leading_axis(samples: Any) -> None:
    with pytest.raises(ValueError, match="`samples` must be arrays with one common"):
        fisher_information(lambda params, sample: jnp.sum(params), jnp.ones(2), samples)


def squares(params: Any) -> Any:
    """Returns positive numbers that stand for the Fisher information."""
    return jax.tree.map(lambda p: jnp.square(p.astype(jnp.float32)), params)


KEEPERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "keep_fisher": keep_fisher,
    "natural gradient": lambda fisher: scale_by_natural_gradient(fisher, damping=0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_information_passes_updates_and_is_found_by_name(dtype: str) -> None:
    params, gradients = few(2, dtype)
    fisher = squares(params)
    optimizer = optax.chain(keep_fisher(fisher), optax.adam(1e-2))
    after, updates, state = run(optimizer, params, gradients)
    desired = run(optax.adam(1e-2), params, gradients)
    assert_same_bits((after, updates), desired[:2])
    assert_same_bits(optax.tree.get(state, "fisher"), fisher)
    assert_same_bits(state[1], desired[2])


def test_a_filter_around_it_finds_momentum_and_information() -> None:
    params, gradients = few(2)
    inner = optax.chain(keep_fisher(squares(params)), optax.adam(1e-2))
    filtered = mofo_jax.momentum_filter(inner, update_fraction=0.2)
    actual, _, state = run(filtered, params, gradients)
    alone = mofo_jax.momentum_filter(optax.adam(1e-2), update_fraction=0.2)
    assert_same_bits(actual, run(alone, params, gradients)[0])
    assert_same_bits(optax.tree.get(state, "fisher"), squares(params))


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("given", ["all", "trained"])
@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_a_group_of_parameters(wrapper: str, given: str, keeper: str) -> None:
    params = {"a": jnp.ones(3), "b": jnp.full((2, 2), 2.0), "c": jnp.full(4, 3.0)}
    fisher = squares(params)
    if given == "trained":
        fisher = {"a": fisher["a"], "c": fisher["c"]}
    ours = KEEPERS[keeper](fisher)
    if wrapper == "masked":
        optimizer = optax.masked(ours, {"a": True, "b": False, "c": True})
    else:
        groups = {"x": ours, "y": optax.set_to_zero()}
        optimizer = optax.partition(groups, {"a": "x", "b": "y", "c": "x"})
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    kept = optax.tree.get(state, "fisher")
    assert_same_bits((kept["a"], kept["c"]), (fisher["a"], fisher["c"]))
    assert kept["b"] == optax.MaskedNode()


@pytest.mark.parametrize("keeper", KEEPERS)
def test_an_nnx_optimizer_keeps_it(keeper: str) -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    fisher = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    trainer = nnx.Optimizer(model, KEEPERS[keeper](fisher), wrt=nnx.Param)
    before = np.asarray(model.kernel[...])

    @nnx.jit
    def step(model: nnx.Linear, trainer: nnx.Optimizer) -> None:
        trainer.update(model, nnx.state(model, nnx.Param))

    step(model, trainer)
    factor = 2 if keeper == "keep_fisher" else 1 + 1 / 1.1
    np.testing.assert_allclose(model.kernel[...], factor * before, rtol=1e-6)


@pytest.mark.parametrize("keeper", KEEPERS)
def test_the_state_is_made_of_copies_and_keeps_its_type(keeper: str) -> None:
    params, gradients = few(2, "bfloat16")
    fisher = squares(params)
    optimizer = KEEPERS[keeper](fisher)
    state = optimizer.init(params)
    _, updates, after = run(optimizer, params, gradients)
    assert types(updates[-1]) == types(params)
    assert types(after) == types(state)
    moved = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    np.testing.assert_array_equal(moved.fisher["heads"], state.fisher["heads"] + 1)
    jax.jit(lambda s: s, donate_argnums=0)(state)
    assert np.all(np.isfinite(fisher["heads"]))  # It was not donated with the state.
    shapes = jax.eval_shape(optimizer.init, params)
    assert jax.tree.structure(shapes) == jax.tree.structure(after)


@pytest.mark.parametrize("b1", [0.9, 0.0])
def test_natural_gradient_agrees_with_numpy(b1: float) -> None:
    params, gradients = float32_zoo(4)
    optimizer = scale_by_natural_gradient(squares(params), damping=0.5, b1=b1)
    _, updates, state = run(optimizer, params, gradients)
    steps = zip(*map(jax.tree.leaves, zoo_gradients(4)), strict=True)
    for i, (theta, series) in enumerate(
        zip(jax.tree.leaves(zoo_params()), steps, strict=True)
    ):
        m = np.zeros_like(theta)
        for t, g in enumerate(series, start=1):
            m = b1 * m + (1 - b1) * g
            expected = m / (1 - b1**t) / (theta**2 + 0.5)
            actual = jax.tree.leaves(updates[t - 1])[i]
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert int(state.count) == 4


def test_natural_gradient_with_traced_numbers_and_its_own_dtype() -> None:
    params, gradients = few(2)
    fisher = squares(params)
    inject = optax.inject_hyperparams(
        scale_by_natural_gradient, hyperparam_dtype=jnp.float32
    )
    _, updates, state = run(inject(fisher, damping=0.5), params, gradients)
    plain = scale_by_natural_gradient(fisher, damping=0.5)
    for actual, expected in zip(
        *map(jax.tree.leaves, (updates, run(plain, params, gradients)[1])), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    narrow = scale_by_natural_gradient(fisher, damping=0.5, mu_dtype=jnp.bfloat16)
    state = run(narrow, params, gradients)[2]
    assert state.mu["heads"].dtype == jnp.bfloat16
    assert state.fisher["heads"].dtype == jnp.float32


def first_update(optimizer: optax.GradientTransformation, params: Any) -> None:
    optimizer.update(params, optimizer.init(params), params)


WEIGHTS = {"layer": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
MISFITS: dict[str, tuple[Any, str]] = {
    "shape": (
        {"layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}},
        r"`fisher` for layer/kernel must have the parameter's shape \(2, 3\), got "
        r"\(3, 2\)",
    ),
    "number": (
        {"layer": {"kernel": jnp.ones((2, 3))}},
        "`fisher` must have one array for each parameter: 2, got 1",
    ),
    "names": (
        {"layer": {"scale": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
        "`fisher` must have the structure of the parameters, got an array for "
        "layer/scale instead of layer/kernel",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("keeper", KEEPERS)
def test_information_that_does_not_fit(keeper: str, misfit: str) -> None:
    fisher, message = MISFITS[misfit]
    with pytest.raises(ValueError, match=message):
        first_update(KEEPERS[keeper](fisher), WEIGHTS)


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"`damping` must be in \[0, inf\), got -1"):
        scale_by_natural_gradient(WEIGHTS, damping=-1)
    with pytest.raises(ValueError, match=r"`b1` must be in \[0, 1\), got 1"):
        scale_by_natural_gradient(WEIGHTS, damping=1, b1=1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_fisher_information_is_widened(dtype: str) -> None:
    fisher = np.array([0.003, 1.0, 2.0])
    kept = fisher.astype(dtype).astype(np.float64)
    natural = scale_by_natural_gradient(jnp.asarray(fisher, dtype), damping=1e-2)
    updates, _ = natural.update(jnp.ones(3), natural.init(jnp.ones(3)))
    np.testing.assert_allclose(updates, 1 / (kept + 1e-2), rtol=1e-6)
    strong = elastic_weight_consolidation(1e5, jnp.asarray(fisher, dtype))
    state = strong.init(jnp.zeros(3))
    updates, _ = strong.update(jnp.zeros(3), state, jnp.full(3, 1e-3))
    np.testing.assert_allclose(updates, 1e5 * kept * 1e-3, rtol=1e-6)
