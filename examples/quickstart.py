"""A minimal program: a Flax NNX model fine-tuned with MoFO and inverse covariances.

Run it with `python -m examples.quickstart`. A network first learns two functions. It is
then fine-tuned on the first function only, from the same start, with AdamW, with MoFO,
and with inverse covariances, and the losses on both functions are printed. The last
method is given inputs of the second function, but no targets. A language model can
generate such inputs itself, as in `examples.finetune`.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import mofo_jax

STEPS = 1000


class Network(nnx.Module):
    """A multi-layer perceptron with two inputs and one output."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 256, rngs=rngs)
        self.second = nnx.Linear(256, 256, rngs=rngs)
        self.last = nnx.Linear(256, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs `[batch, 2]` to outputs `[batch]`."""
        hidden = nnx.gelu(self.second(nnx.gelu(self.first(x))))
        return self.last(hidden)[:, 0]


def batch(key: jax.Array, task: float) -> tuple[jax.Array, jax.Array]:
    """Draws inputs `[256, 2]`, whose second column is the task, and targets `[256]`."""
    x = jax.random.uniform(key, (256,), minval=-3.0, maxval=3.0)
    target = jnp.sin(2.0 * x) if task > 0 else jnp.cos(3.0 * x)
    return jnp.stack([x, jnp.full_like(x, task)], axis=1), target


def mean_squared_error(model: Network, x: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean squared error of the model's outputs."""
    return jnp.mean((model(x) - target) ** 2)


# Donation pairs buffers and outputs of one shape by position, so a step must return its
# updated arguments in order. NNX does so for the model and the optimizer.
@nnx.jit(donate_argnums=(0, 1))
def train_step(
    model: Network, optimizer: nnx.Optimizer, x: jax.Array, target: jax.Array
) -> jax.Array:
    """Takes one step and returns the loss before it."""
    loss, grads = nnx.value_and_grad(mean_squared_error)(model, x, target)
    optimizer.update(model, grads)
    return loss


def train(
    model: Network, transformation: optax.GradientTransformation, tasks: list[float]
) -> None:
    """Trains the model in place, alternating between the tasks."""
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    for step in range(STEPS):
        task = tasks[step % len(tasks)]
        train_step(model, optimizer, *batch(jax.random.key(step), task))


def main() -> None:
    """Prints the losses of both tasks before and after fine-tuning."""
    held_out = {"task": batch(jax.random.key(-1), 1.0)}
    held_out["earlier task"] = batch(jax.random.key(-2), -1.0)

    def report(name: str, model: Network) -> None:
        losses = {k: float(mean_squared_error(model, *v)) for k, v in held_out.items()}
        print(
            f"{name:18}", *(f"{k}: {loss:.4f}" for k, loss in losses.items()), sep="  "
        )

    start = Network(nnx.Rngs(0))
    train(start, optax.adamw(1e-3), [1.0, -1.0])
    report("start", start)
    graph, params = nnx.split(start)
    covariances = mofo_jax.input_covariances(
        lambda params, x: nnx.merge(graph, params)(x),
        params,
        (batch(jax.random.key(seed), -1.0)[0] for seed in range(8)),
    )
    optimizers = {
        "optax.adamw": optax.adamw(1e-3),
        "mofo": mofo_jax.mofo(1e-3),  # The one line that changes.
        "inverse covariance": optax.chain(
            optax.scale_by_adam(),
            mofo_jax.scale_by_inverse_covariance(covariances),
            optax.scale_by_learning_rate(1e-3),
        ),
    }
    for name, transformation in optimizers.items():
        # Copy the parameters, because training donates their buffers.
        model = nnx.merge(graph, jax.tree.map(jnp.copy, params))
        train(model, transformation, [1.0])
        report(name, model)


if __name__ == "__main__":
    main()
