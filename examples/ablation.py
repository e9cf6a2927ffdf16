"""What the fraction and the score decide: the paper's ablation, on a small problem.

Run it with `python -m examples.ablation`. A model of many weights is pulled to a new
task by noisy gradients. What it forgets is the loss of the old task, at whose optimum
it starts. The paper finds that forgetting follows the fraction of the weights that
move, and learning the score by which they are chosen.
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
      learned: by how much of itself the loss of the new task fell.
      forgotten: by how much the loss of the old task rose.
    """

    learned: float
    forgotten: float


def run(score: str, fraction: float, seed: int = 0) -> Outcome:
    """Trains once.

    Args:
      score: what ranks coordinates, as in `mofo_jax.mofo`.
      fraction: the share that moves in a step, in (0, 1].
      seed: decides the task and the noise.

    Returns:
      What was learned and forgotten.
    """
    learned, forgotten = _run(score, fraction, seed)
    return Outcome(float(learned), float(forgotten))


@functools.partial(jax.jit, static_argnames=("score", "fraction"))
def _run(score: Any, fraction: float, seed: int) -> tuple[jax.Array, jax.Array]:
    """Is `run`, compiled."""
    keys = jax.random.split(jax.random.key(seed), 3)
    # Curvatures as different as those of a network's weights.
    curvature = jnp.exp(1.5 * jax.random.normal(keys[0], (WEIGHTS,)))
    target = jax.random.normal(keys[1], (WEIGHTS,))
    optimizer = mofo_jax.mofo(LEARNING_RATE, update_fraction=fraction, score=score)

    def loss(weights: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvature * (weights - target) ** 2)

    def step(carry: tuple, key: jax.Array) -> tuple:
        weights, state = carry
        gradient = jax.grad(loss)(weights)
        # As loud as the gradient itself, as in a small batch.
        noise = curvature * jax.random.normal(key, (WEIGHTS,))
        updates, state = optimizer.update(gradient + noise, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros(WEIGHTS)
    carry = start, optimizer.init(start)
    (end, _), _ = jax.lax.scan(step, carry, jax.random.split(keys[2], STEPS))
    return 1 - loss(end) / loss(start), 0.5 * jnp.sum(end**2)


def main() -> None:
    """Prints a table: three seeds, mean and greatest deviation."""
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
