"""How much a direction learns for its drift, at the start and without training.

To second order, a step of length e along u changes the task loss by e (g.u), where g
is the gradient, and causes a drift of e^2 (u.F.u) / 2, where F is the Fisher
information on a kind of text. The ratio (g.u)^2 e^2 / KL(e u) therefore measures how
much a direction learns for its drift, independently of its length. At equal task loss,
the KL of two methods has the inverse ratio of these values, as long as steps are small.

Both quantities are measured rather than computed: the loss on rows that the direction
has not seen, and KL on held-out texts, slightly ahead of the start and equally far
behind it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.finetune.command.config import Config
from examples.finetune.training.step import gradients
from examples.study.measuring import Measured, Reference, Scales
from examples.study.training import Course, Params, Trainer, assemble

# The KL on prose at which directions are measured: small enough for an approximately
# linear change of the task loss, and large enough for float32.
DRIFT = 3e-5
FIRST_LENGTH = 0.05  # Euclidean; the search for the length of DRIFT begins here.


class Moments(NamedTuple):
    """Adam's moments after some steps without updates.

    Attributes:
      adam: Adam's state before the last step.
      gradient: the clipped gradient of the last step.
    """

    adam: optax.ScaleByAdamState
    gradient: Params


def moments(trainer: Trainer, start: Params, course: Course, config: Config) -> Moments:
    """Computes Adam's moments on the batches of a course, at the start.

    Args:
      trainer: the trainer with the model.
      start: the start's parameters, on the host.
      course: the batches.
      config: Adam's settings and the norm for clipping gradients.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    clip = optax.clip_by_global_norm(config.clip_norm)

    @jax.jit
    def clipped(params: Params, batch: Mapping[str, jax.Array]) -> Params:
        _, grads = gradients(trainer.graph, params, batch, 1)
        return clip.update(grads, clip.init(params))[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def advanced(state: Any, grads: Params) -> Any:
        return adam.update(grads, state)[1]

    params = trainer.begin(start)
    state: Any = adam.init(params)
    *others, last = trainer.batches(course)
    for batch in others:
        state = advanced(state, clipped(params, trainer.place(batch)))
    return Moments(state, clipped(params, trainer.place(last)))


def direction(
    optimizer: str,
    config: Config,
    start: Params,
    known: Moments,
    information: Params | None = None,
) -> Params:
    """Returns the next update of an optimizer with the given moments of Adam.

    Args:
      optimizer: its name in `examples.finetune.training.optimizers`.
      config: its settings.
      start: the parameters, on the devices.
      known: the moments, which replace the optimizer's own.
      information: the Fisher information, if the optimizer needs it.
    """
    made = assemble(optimizer, config, (), lambda _: 1.0, information)

    def is_adam(part: Any) -> bool:
        return isinstance(part, optax.ScaleByAdamState)

    # Not in the compiled function, where the contents of the state would be constants.
    state = jax.tree.map(
        lambda part: known.adam if is_adam(part) else part,
        made.init(start),
        is_leaf=is_adam,
    )
    update = jax.jit(made.update)
    return update(known.gradient, state, start)[0]


@jax.jit
def _moved(start: Params, along: Params, length: jax.Array) -> Params:
    return jax.tree.map(lambda a, b: a + (length * b).astype(a.dtype), start, along)


def measured(
    start: Params,
    along: Params,
    task: str,
    few: Scales,
    scales: Scales,
    references: tuple[Reference, Reference],
) -> Measured:
    """Measures a direction on both sides of the start.

    Args:
      start: the parameters, on the devices.
      along: the direction, of any length.
      task: the task whose loss is measured.
      few: a few pieces of prose, with which the length is determined.
      scales: the texts and tasks of the measurement.
      references: the start's data on both.

    Returns:
      `length`, the Euclidean length of the step; `quadratic`, the ratio of KL on prose
      to its quadratic extrapolation from a much shorter step; `ahead` and `behind`, the
      `sets` of `Scales` on both sides.
    """
    norm = float(jnp.sqrt(dot(along, along)))

    def drift(length: float) -> float:
        moved = _moved(start, along, jnp.float32(length / norm))
        sets = few.sets(moved, ("prose",), references[0])
        return float(np.sum(sets["prose"]["divergences"]))

    tokens = float(np.sum(few.counts()["prose"]["divergences"]))
    first = drift(FIRST_LENGTH) / tokens
    length = FIRST_LENGTH * math.sqrt(DRIFT / first)
    found: Measured = {
        "length": float(f"{length:.6g}"),
        "quadratic": round(drift(length) / tokens / DRIFT, 4),
    }
    for name, sign in (("ahead", 1.0), ("behind", -1.0)):
        moved = _moved(start, along, jnp.float32(sign * length / norm))
        found[name] = scales.sets(moved, (task, *scales.retained), references[1])
    return found


def dot(first: Params, second: Params) -> jax.Array:
    """Returns the inner product of two trees."""
    parts = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    return sum(jax.tree.leaves(parts), start=jnp.zeros(()))


Product = Callable[[Params], Params]


def fisher_product(
    trainer: Trainer, start: Params, batches: list[dict[str, jax.Array]]
) -> Product:
    """Returns the product with the Fisher information of a model's predictions.

    Args:
      trainer: the trainer with the model's structure.
      start: the start's parameters, on the devices.
      batches: texts, at whose positions the model predicts, from `Trainer.place`.
    """
    from flax import nnx

    from examples.finetune.data.batches import loss_targets
    from examples.finetune.model.attention import causal_mask

    @jax.jit
    def one(params: Params, batch: Mapping[str, jax.Array], along: Params) -> Params:
        def logits(params: Params) -> jax.Array:
            model = nnx.merge(trainer.graph, params)
            mask = causal_mask(batch["segments"])
            return model(batch["tokens"], batch["positions"], mask)

        values_BxTxV, moved_BxTxV = jax.jvp(logits, (params,), (along,))
        likely_BxTxV = jax.nn.softmax(values_BxTxV)
        mean_BxTx1 = jnp.sum(likely_BxTxV * moved_BxTxV, axis=-1, keepdims=True)
        counted_BxTx1 = loss_targets(batch)[1][..., None]
        curved_BxTxV = likely_BxTxV * (moved_BxTxV - mean_BxTx1) * counted_BxTx1
        _, back = jax.vjp(logits, params)
        return back(curved_BxTxV)[0]

    places = sum(int(jnp.sum(loss_targets(batch)[1])) for batch in batches)

    def product(along: Params) -> Params:
        total = None
        for batch in batches:
            part = one(start, batch, along)
            total = part if total is None else _added(total, part)
        return jax.tree.map(lambda leaf: leaf / places, total)

    return product


@functools.partial(jax.jit, donate_argnums=0)
def _added(total: Params, part: Params) -> Params:
    return jax.tree.map(jnp.add, total, part)


def solve(
    product: Product,
    target: Params,
    scale: Params,
    damping: float,
    iterations: int,
    between: Product = lambda tree: tree,
) -> Params:
    """Solves (F + damping diag(scale)) x = target by conjugate gradients.

    The preconditioner is `between`, with a division by the root of the scale before and
    after it. The first iterate is along the preconditioned target, which is Adam's step
    if `between` is the identity. More damping stays closer to it.

    Args:
      product: multiplies by F, which is symmetric and positive semidefinite.
      target: the right-hand side.
      scale: a positive tree like the target.
      damping: a positive number.
      iterations: the number of iterations, at least 1.
      between: multiplies by a matrix that is symmetric and positive definite.

    Returns:
      The last iterate.
    """

    @jax.jit
    def divided(tree: Params) -> Params:
        return jax.tree.map(lambda leaf, s: leaf / jnp.sqrt(s), tree, scale)

    def preconditioned(tree: Params) -> Params:
        return divided(between(divided(tree)))

    @jax.jit
    def advanced(state: tuple[Any, ...], curved: Params) -> tuple[Params, Params]:
        found, rest, along, size = state
        curved = jax.tree.map(lambda c, s, a: c + damping * s * a, curved, scale, along)
        share = size / dot(along, curved)
        found = jax.tree.map(lambda x, a: x + share * a, found, along)
        return found, jax.tree.map(lambda r, c: r - share * c, rest, curved)

    @jax.jit
    def turned(after: Params, along: Params, share: jax.Array) -> Params:
        return jax.tree.map(lambda z, a: z + share * a, after, along)

    found, rest = optax.tree.zeros_like(target), target
    along = preconditioned(rest)
    size = dot(rest, along)
    for _ in range(iterations):
        found, rest = advanced((found, rest, along, size), product(along))
        after = preconditioned(rest)
        before, size = size, dot(rest, after)
        along = turned(after, along, size / before)
    return found
