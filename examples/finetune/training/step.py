"""The training step of one arm: loss, gradient, and measurements of movement."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.finetune.data.batches import loss_targets
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.parameters import shardings
from examples.finetune.model.sharding import param_shardings
from examples.finetune.training import movement, replay

Params = Any


class State(NamedTuple):
    """The state that a step passes to the next, besides the parameters.

    Attributes:
      optimizer: the optimizer's state.
      selected: a boolean for each coordinate, whether the step's update was not zero,
        for comparing successive selections. It needs a quarter of the memory of float32
        parameters.
    """

    optimizer: optax.OptState
    selected: Params


Step = Callable[..., tuple[Params, State, movement.Metrics]]


def summed_loss(model: Decoder, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the cross-entropy of a batch, summed over the tokens that carry loss.

    Args:
      model: the language model.
      batch: a batch from `data.training_batches`, arrays [B, T].

    Returns:
      A float32 scalar.
    """
    hidden_BxTxD = model.hidden(
        batch["tokens"], batch["positions"], causal_mask(batch["segments"])
    )
    return _summed_cross_entropy(model, hidden_BxTxD, batch)


def _summed_cross_entropy(
    model: Decoder, hidden_BxTxD: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array:
    targets_BxT, counted_BxT = loss_targets(batch)
    losses_BxT = optax.softmax_cross_entropy_with_integer_labels(
        model.logits(hidden_BxTxD), targets_BxT
    )
    return jnp.sum(losses_BxT, where=counted_BxT)


def gradients(
    graph: nnx.GraphDef,
    params: Params,
    batch: Mapping[str, jax.Array],
    accumulation_steps: int,
    frozen: Params | None = None,
    term: replay.Term | None = None,
) -> tuple[dict[str, jax.Array], Params]:
    """Returns the gradient of the mean loss, with or without a term of replay.

    Args:
      graph: the model's structure.
      params: its parameters.
      batch: arrays [A * B, T] with A = accumulation_steps; B rows at a time go through
        the model. All tokens have the same weight, however the rows are split.
      accumulation_steps: at least 1.
      frozen: the model's other parameters, if `params` are not all.
      term: the replayed texts; arrays [A * R, T], with R rows for B rows of the task.

    Returns:
      The means, float32 scalars: `loss` per token that carries loss and, if `term` is
      given, `replay_kl` per token that the base model generated; and the gradient of
      `loss + term.weight * replay_kl`, a tree like `params`.
    """
    own = {} if term is None else term.rows
    count = jnp.maximum(jnp.sum(loss_targets(batch)[1]), 1)
    written = 1 if term is None else jnp.maximum(jnp.sum(loss_targets(own)[1]), 1)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def sums_and_gradient(params: Params, parts: Any) -> Any:
        model = nnx.merge(graph, params, frozen or {})
        if term is None:
            loss = summed_loss(model, parts[0])
            return loss, {"loss": loss}
        base = replay.base_model(graph, (params, frozen), term)
        task_hidden, own_hidden = replay.hidden_of_both(model, *parts)
        loss = _summed_cross_entropy(model, task_hidden, parts[0])
        rows = parts[0]["tokens"].shape[0]
        divergence = replay.summed_divergence(model, base, own_hidden, parts[1], rows)
        # Divided by `count` together with the rest, below.
        whole = loss + term.weight * (count / written) * divergence
        return whole, {"loss": loss, "replay_kl": divergence}

    def sums(parts: Any) -> Any:
        (_, found), gradient = sums_and_gradient(params, parts)
        return found, gradient

    given = dict(batch), dict(own)
    if accumulation_steps == 1:
        found, total = sums(given)
    else:
        # Row r belongs to part r % A, so that each device keeps its own rows. Cutting
        # the batch into A runs of rows would transfer rows between devices.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1),
            given,
        )
        first = jax.tree.map(lambda x: x[0], parts)
        # Summed in float32, since bfloat16 loses small terms beside a large sum.
        nothing = jax.tree.map(
            lambda x: _at_least_float32(jnp.zeros(x.shape, x.dtype)),
            jax.eval_shape(sums, first),
        )

        def add(total: Any, parts: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, sums(parts)), None

        (found, total), _ = jax.lax.scan(add, nothing, parts)
    counts = {"loss": count, "replay_kl": written}
    means = {name: x / counts[name] for name, x in found.items()}
    return means, jax.tree.map(lambda x, p: (x / count).astype(p.dtype), total, params)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def make_step(
    graph: nnx.GraphDef,
    transformation: optax.GradientTransformationExtraArgs,
    accumulation_steps: int,
    params: Params,
    state: State,
    frozen: Params | None = None,
) -> Step:
    """Compiles the training step of one arm.

    Args:
      graph: the model's structure.
      transformation: the optimizer, with its learning rate.
      accumulation_steps: number of passes that are summed for one step.
      params: the parameters, for their sharding.
      state: from `init_state`, for its sharding.
      frozen: as for `gradients`.

    Returns:
      `step(params, state, batch)`, with an optional `replay.Term`. It returns the new
      parameters and state and the metrics `loss`, `replay_kl` (with replay),
      `gradient_norm`, those of `movement.of_step`, and `finite`, whether all of the
      gradient was finite. If it was not, parameters and state are returned unchanged.
      The given parameters and state must not be used again.
    """

    def move(params: Params, state: State, grads: Params) -> Any:
        updates, optimizer = transformation.update(grads, state.optimizer, params)
        new = optax.apply_updates(params, updates)
        # Measured at every step: under a `cond` for logged steps only, XLA keeps the
        # old parameters besides the new ones, and the optimizer's part took three times
        # as long.
        metrics = {
            "gradient_norm": optax.tree.norm(jax.tree.map(_at_least_float32, grads)),
            **movement.of_step(new, params, updates, state.selected),
        }
        return new, State(optimizer, movement.selected(updates)), metrics

    def stay(params: Params, state: State, grads: Params) -> Any:
        nothing = optax.tree.zeros_like(jax.eval_shape(move, params, state, grads)[2])
        return (
            params,
            state,
            nothing
            | {"gradient_norm": jnp.full_like(nothing["gradient_norm"], jnp.nan)},
        )

    def step(
        params: Params,
        state: State,
        batch: Mapping[str, jax.Array],
        frozen: Params | None,
        term: replay.Term | None,
    ) -> tuple[Params, State, movement.Metrics]:
        means, grads = gradients(graph, params, batch, accumulation_steps, frozen, term)
        finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(grads)])
        # The parameters are updated within the `cond`, because XLA compiles the
        # addition together with the optimizer; outside of it, the last bits of every
        # step would differ.
        params, state, metrics = jax.lax.cond(
            jnp.all(finite), move, stay, params, state, grads
        )
        return params, state, {**means, "finite": jnp.all(finite), **metrics}

    # The state is returned in argument order, parameters first, since donation pairs
    # buffers with outputs of equal shape by position. In another order, the momentum's
    # buffer would become the parameter's and every tensor would be copied.
    compiled = jax.jit(
        step,
        donate_argnums=(0, 1),
        out_shardings=(shardings(params), shardings(state), None),
    )

    def call(
        params: Params,
        state: State,
        batch: Mapping[str, jax.Array],
        term: replay.Term | None = None,
    ) -> tuple[Params, State, movement.Metrics]:
        return compiled(params, state, batch, frozen, term)

    return call


def init_state(
    transformation: optax.GradientTransformationExtraArgs, params: Params
) -> State:
    """Returns the initial state, sharded like the parameters, with no selection."""
    # Not jitted, so that the moments are created where their parameters are. Counters
    # are created on no particular device, and are placed here, since otherwise the
    # second step, which receives them from the first, would be compiled again.
    nothing = optax.tree.zeros_like(params, dtype=bool)
    state = State(transformation.init(params), nothing)
    mesh = jax.tree.leaves(params)[0].sharding.mesh

    def placed(leaf: jax.Array, where: jax.sharding.NamedSharding) -> jax.Array:
        # What lies on the mesh already, such as factors of covariances, stays.
        kept = isinstance(leaf.sharding, jax.sharding.NamedSharding)
        return leaf if kept else jax.device_put(leaf, where)

    return jax.tree.map(placed, state, param_shardings(state, mesh))
