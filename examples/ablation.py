"""The paper's ablation of the fraction and the score, on a small problem.

Run it with `python -m examples.ablation`. A model with many weights is trained on a new
task with noisy gradients, starting from the optimum of an old task. Forgetting is the
increase of the old task's loss. The paper finds that forgetting depends on the fraction
of the weights that are updated, and learning on the score that ranks them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mofo_jax

SCORES = ("momentum", "gradient", "adam_ratio", "random")
FRACTIONS = (0.05, 0.15, 0.4)
WEIGHTS = 4000
STEPS = 60
LEARNING_RATE = 0.01


class Outcome(NamedTuple):
    """What a run learned and forgot.

    Attributes:
      learned: the relative decrease of the new task's loss.
      forgotten: the increase of the old task's loss.
    """

    learned: float
    forgotten: float


def run(score: str, fraction: float, seed: int = 0) -> Outcome:
    """Trains once and measures learning and forgetting.

    Args:
      score: the score that ranks coordinates, as in `mofo_jax.mofo`.
      fraction: the fraction that is updated in a step, in (0, 1].
      seed: seed of the task and the noise.

    Returns:
      The learning and the forgetting of the run.
    """
    learned, forgotten = _run(score, fraction, seed)
    return Outcome(float(learned), float(forgotten))


@functools.partial(jax.jit, static_argnames=("score", "fraction"))
def _run(score: Any, fraction: float, seed: int) -> tuple[jax.Array, jax.Array]:
    """Implements `run`, compiled."""
    keys = jax.random.split(jax.random.key(seed), 3)
    # Curvatures vary as much as those of a network's weights.
    curvature = jnp.exp(1.5 * jax.random.normal(keys[0], (WEIGHTS,)))
    target = jax.random.normal(keys[1], (WEIGHTS,))
    optimizer = mofo_jax.mofo(LEARNING_RATE, update_fraction=fraction, score=score)

    def loss(weights: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvature * (weights - target) ** 2)

    def step(carry: tuple, key: jax.Array) -> tuple:
        weights, state = carry
        gradient = jax.grad(loss)(weights)
        # The noise has the gradient's scale, as in a small batch.
        noise = curvature * jax.random.normal(key, (WEIGHTS,))
        updates, state = optimizer.update(gradient + noise, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros(WEIGHTS)
    carry = start, optimizer.init(start)
    (end, _), _ = jax.lax.scan(step, carry, jax.random.split(keys[2], STEPS))
    return 1 - loss(end) / loss(start), 0.5 * jnp.sum(end**2)


def main() -> None:
    """Prints a table of means over three seeds."""
    import rich.console
    import rich.table

    table = rich.table.Table(title="Learned (share of the loss) and forgotten")
    table.add_column("score")
    for fraction in FRACTIONS:
        table.add_column(f"fraction {fraction:g}", justify="right")
    for score in SCORES:
        row = []
        for fraction in FRACTIONS:
            found = np.array([run(score, fraction, seed) for seed in range(3)])
            learned, forgotten = found.mean(0)
            row.append(f"{100 * learned:.1f}%  {forgotten:.1f}")
        table.add_row(score, *row)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
