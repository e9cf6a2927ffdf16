"""The paper's claims about MoFO, on problems for which they can be checked."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax

TOY_STEPS = 20_000


def toy_end(target: tuple[float, float], ties: str, fraction: float) -> np.ndarray:
    """Returns the end of training on the paper's toy problem, starting from (0, 0).

    The pre-training loss is the squared distance from the start; the fine-tuning loss
    is zero on two lines, which a greedy step reaches along one axis.
    """

    def loss(theta: jax.Array) -> jax.Array:
        return jnp.prod((theta - jnp.array(target)) ** 2)

    optimizer = mofo_jax.mofo(1e-2, ties=ties, update_fraction=fraction)
    start = jnp.zeros(2)

    def step(carry: tuple, _: None) -> tuple:
        theta, state = carry
        updates, state = optimizer.update(jax.grad(loss)(theta), state, theta)
        return (theta + updates, state), None

    (theta, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=TOY_STEPS))(
        (start, optimizer.init(start))
    )
    return np.asarray(theta)


@pytest.mark.parametrize(
    ("target", "ties", "fraction", "end"),
    [
        # Both momenta stay equal. Exactly one coordinate moves, the first: distance 1.
        ((1.0, 1.0), "exact", 0.5, (1.0, 0.0)),
        # If ties all move, MoFO equals Adam here and moves along the diagonal.
        ((1.0, 1.0), "all", 0.5, (1.0, 1.0)),
        ((1.0, 1.0), "all", 1.0, (1.0, 1.0)),
        # Without symmetry both rules move along one axis, unlike Adam.
        ((1.0, 2.0), "exact", 0.5, (1.0, 0.0)),
        ((1.0, 2.0), "all", 0.5, (1.0, 0.0)),
        ((1.0, 2.0), "all", 1.0, (1.0, 0.694)),
    ],
)
def test_the_papers_toy(
    target: tuple[float, float], ties: str, fraction: float, end: tuple[float, float]
) -> None:
    np.testing.assert_allclose(toy_end(target, ties, fraction), end, atol=2e-3)


def test_the_gradient_decreases_at_the_theorems_rate() -> None:
    # The theorem: for steps eta / sqrt t, without noise, and b1 < sqrt b2, the minimum
    # over t <= T of the norm that sums the top fraction of |gradient| in each block is
    # O(log T / sqrt T).
    rng = np.random.default_rng(0)
    size, steps, fraction = 200, 10_000, 0.15
    scale = jnp.asarray(np.exp(rng.normal(size=size)), jnp.float32)
    phase = jnp.asarray(rng.uniform(0, 2 * math.pi, size), jnp.float32)
    mix = jnp.asarray(rng.normal(size=(size, size)) / math.sqrt(size), jnp.float32)

    def loss(theta: jax.Array) -> jax.Array:
        bumps = jnp.cos(3.0 * (mix @ theta) + phase)
        return 0.5 * jnp.sum(scale * theta**2) + jnp.sum(bumps)

    optimizer = mofo_jax.mofo(
        lambda count: 0.05 / jnp.sqrt(count + 1.0), update_fraction=fraction
    )
    start = jnp.asarray(rng.normal(size=size), jnp.float32)

    def step(carry: tuple, _: None) -> tuple:
        theta, state = carry
        gradient = jax.grad(loss)(theta)
        updates, state = optimizer.update(gradient, state, theta)
        return (theta + updates, state), gradient

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))
    _, gradients = run((start, optimizer.init(start)))
    magnitudes = np.sort(np.abs(np.asarray(gradients, np.float64)), axis=1)
    least = np.minimum.accumulate(magnitudes[:, -int(size * fraction) :].sum(axis=1))
    ratios = {t: least[t - 1] * math.sqrt(t) / math.log(t) for t in (100, 1000, steps)}
    assert max(ratios.values()) < 1.5 * ratios[100]
    assert least[-1] < 0.2 * least[99] < 0.2 * least[0]
