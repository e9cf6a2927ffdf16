"""One arm of the run: the training step, and the loop around it."""

import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx

from examples.finetune.command.config import Config
from examples.finetune.command.status import Stopped, deferred
from examples.finetune.data.batches import Batch, loss_targets, token_count
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.llama import Llama
from examples.finetune.model.parameters import shardings
from examples.finetune.model.sharding import param_shardings
from examples.finetune.storage.checkpoints import ArmFiles, Position
from examples.finetune.system import hosts
from examples.finetune.training import movement, progress
from examples.finetune.training.optimizers import make, schedule

Params = Any
Place = Callable[[Batch], dict[str, jax.Array]]


class State(NamedTuple):
    """What a step leaves to the next, beside the parameters.

    Attributes:
      optimizer: the optimizer's state.
      selected: where the step's update was not zero, a boolean for each coordinate: a
        quarter of the memory of float32 parameters, so that successive selections can
        be compared.
    """

    optimizer: optax.OptState
    selected: Params


Step = Callable[
    [Params, State, Mapping[str, jax.Array]],
    tuple[Params, State, movement.Metrics],
]


def summed_loss(model: Llama, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The cross-entropy of a batch, summed over the tokens that carry loss.

    Args:
      model: the language model.
      batch: as `data.training_batches` makes them, arrays [B, T].

    Returns:
      A float32 scalar.
    """
    targets_BxT, counted_BxT = loss_targets(batch)
    logits_BxTxV = model(
        batch["tokens"], batch["positions"], causal_mask(batch["segments"])
    )
    losses_BxT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BxTxV, targets_BxT
    )
    return jnp.sum(losses_BxT, where=counted_BxT)


def gradients(
    graph: nnx.GraphDef,
    params: Params,
    batch: Mapping[str, jax.Array],
    accumulation_steps: int,
    frozen: Params | None = None,
) -> tuple[jax.Array, Params]:
    """The mean loss per token that carries loss, and its gradient.

    Args:
      graph: the model's structure.
      params: its parameters.
      batch: arrays [A * B, T] with A = accumulation_steps; B rows at a time go through
        the model. However they are split, every token counts the same.
      accumulation_steps: at least 1.
      frozen: the rest of its parameters, if `params` are not all.

    Returns:
      The loss, a float32 scalar, and a tree like `params`.
    """

    @jax.value_and_grad
    def loss_and_gradient(params: Params, part: Mapping[str, jax.Array]) -> jax.Array:
        return summed_loss(nnx.merge(graph, params, frozen or {}), part)

    def add(total: Any, part: Mapping[str, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, loss_and_gradient(params, part)), None

    if accumulation_steps == 1:
        total = loss_and_gradient(params, batch)
    else:
        # Row r goes to part r % A: each device keeps its own rows, where cutting the
        # batch into A runs of rows would send them between devices.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulation_steps, x.shape[-1]).swapaxes(0, 1),
            dict(batch),
        )
        nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, nothing, parts)
    count = jnp.maximum(jnp.sum(loss_targets(batch)[1]), 1)
    return jax.tree.map(lambda x: (x / count).astype(x.dtype), total)


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
      accumulation_steps: passes summed into one step.
      params: the parameters, for their sharding.
      state: from `init_state`, for its sharding.
      frozen: as for `gradients`.

    Returns:
      `step(params, state, batch)`, which returns the new parameters, state and the
      metrics `loss`, `gradient_norm`, those of `movement.of_step`, and `finite`:
      whether all of the gradient was. Where it was not, parameters and state come back
      as they were, and nothing has moved. The given parameters and state must not be
      used again.
    """

    # Optax's names: to the guard below this is a transformation.
    def move(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads, (params, state, _) = updates, state
        updates, optimizer = transformation.update(grads, state.optimizer, params)
        new = optax.apply_updates(params, updates)
        # Measured at every step: under a `cond` on whether it is logged, XLA keeps the
        # old parameters beside the new, and the optimizer's part took three times as
        # long.
        metrics = {
            "gradient_norm": optax.tree.norm(grads),
            **movement.of_step(new, params, updates, state.selected),
        }
        return grads, (new, State(optimizer, movement.selected(updates)), metrics)

    # All that moves is guarded, as if it were the state of a transformation. Around
    # the optimizer alone the guard would part it from the addition to the parameters,
    # which XLA compiles as one: the last bits of every step would be others.
    guarded = optax.apply_if_finite(
        optax.GradientTransformation(lambda params: (), move), max_consecutive_errors=1
    )

    def step(
        params: Params,
        state: State,
        batch: Mapping[str, jax.Array],
        frozen: Params | None,
    ) -> tuple[Params, State, movement.Metrics]:
        loss, grads = gradients(graph, params, batch, accumulation_steps, frozen)
        _, (_, _, shapes) = jax.eval_shape(move, grads, (params, state, {}))
        nothing = jax.tree.map(jnp.zeros_like, shapes)
        # Counted by the loop, not here: what a checkpoint holds of the optimizer is
        # its own state, so that AdamW's goes on as MoFO's.
        zero = jnp.zeros((), jnp.int32)
        kept = params, state, nothing | {"gradient_norm": jnp.full((), jnp.nan)}
        before = optax.ApplyIfFiniteState(zero, jnp.array(True), zero, kept)
        after: Any = guarded.update(grads, before)[1]
        params, state, metrics = after.inner_state
        return params, state, {"loss": loss, "finite": after.last_finite, **metrics}

    # The state goes out in the order in which it came in, parameters first: JAX pairs
    # donated buffers with outputs of equal shape in order, and in another order the
    # momentum's buffer would become the parameter's and every tensor be copied round.
    compiled = jax.jit(
        step,
        donate_argnums=(0, 1),
        out_shardings=(shardings(params), shardings(state), None),
    )
    return functools.partial(compiled, frozen=frozen)


def init_state(
    transformation: optax.GradientTransformationExtraArgs, params: Params
) -> State:
    """The first state, sharded as the parameters are; nothing was selected before."""
    # Eagerly, so that the moments are made where their parameters lie. Counters are
    # made on no particular device; left so, the second step, which gets them from the
    # first, would be compiled anew.
    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, bool), params)
    state = State(transformation.init(params), nothing)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.device_put(state, param_shardings(state, mesh))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One optimizer of the run.

    Attributes:
      name: of the optimizer.
      peak: its peak learning rate.
    """

    name: str
    peak: float


def train(
    config: Config,
    arm: Arm,
    graph: nnx.GraphDef,
    params: Params,
    batches: Iterator[Batch],
    place: Place,
    files: ArmFiles,
    frozen: Params | None = None,
    fisher: Params | None = None,
) -> tuple[Params, Position]:
    """Trains one arm to its last step, from its newest good checkpoint if it has one.

    Args:
      config: the run's settings.
      arm: which optimizer.
      graph: the model's structure.
      params: the start of what is trained; donated, so it must not be used again.
      batches: Grain's iterator over batches of batch_size * accumulation_steps rows.
      place: puts a batch on the devices.
      files: where the arm's checkpoints and metrics go.
      frozen: the rest of the model's parameters, if `params` are not all. It is in no
        checkpoint.
      fisher: the Fisher information, for optimizers in `optimizers.NEEDS_FISHER`.

    Returns:
      The final `params`, and how far the arm came.

    Raises:
      InputError: a checkpoint cannot be read or written, or the gradients of too many
        steps in a row are not finite.
      command.Stopped: a signal came, and the step after which it came is saved.
    """
    transformation = make(arm.name, config, arm.peak, fisher)
    state = init_state(transformation, params)
    params, state, position = files.restore(params, state, batches)
    passes = config.accumulation_steps
    step = make_step(graph, transformation, passes, params, state, frozen)
    rate = schedule(config, arm.peak)
    if position.step and hosts.is_first():
        tqdm.tqdm.write(f"{arm.name} goes on from step {position.step}")
    with (
        progress.bar(config.steps, position.step, arm.name) as bar,
        deferred() as asked,
    ):
        meter = progress.Meter(position)
        skips = progress.Skips(config.max_skipped_steps, arm.name, files, position)
        while position.step < config.steps:
            batch = next(batches)
            number = position.step + 1
            logged = number % config.log_every == 0 or number == config.steps
            params, state, metrics = step(params, state, place(batch))
            tokens = position.tokens + token_count(batch)
            position = dataclasses.replace(position, step=number, tokens=tokens)
            skips.add(number, batch, metrics.pop("finite"))
            stopping = (
                asked()
                if jax.process_count() == 1
                else logged and any(hosts.gathered(asked()))
            )
            due = number % config.checkpoint_every == 0 or number == config.steps
            if logged or due or stopping:
                position = skips.counted(position)
            if logged:
                values = {name: float(value) for name, value in metrics.items()}
                if number == 1:  # No step before it.
                    del values["mask_overlap"]
                position, speeds = meter.read(position)
                values["learning_rate"] = float(np.asarray(rate(number - 1)))
                row = {"arm": arm.name, "step": number, "tokens": tokens}
                files.log({**row, **values, **speeds})
                speed = speeds["tokens_per_second"]
                bar.set_postfix_str(f"loss {values['loss']:.3f}, {speed:,.0f} tokens/s")
            bar.update()
            if due or stopping:
                meter.pause()
                files.save(position, params, state, batches)
                meter.resume()
            if stopping and jax.process_count() > 1:
                # The signal may have come to another process alone.
                raise hosts.everywhere(Stopped(signal.SIGTERM))
            if stopping:
                break
    return params, position
