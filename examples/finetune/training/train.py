"""The training of one arm: the loop around the training step."""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from flax import nnx

from examples.finetune.command.config import Arm, Config
from examples.finetune.command.status import Stopped, deferred
from examples.finetune.data.batches import Batch, token_count
from examples.finetune.model.sharding import Place
from examples.finetune.storage.checkpoints import ArmFiles, Position
from examples.finetune.system import hosts
from examples.finetune.training import progress, replay
from examples.finetune.training.optimizers import make, schedule, without_matrices
from examples.finetune.training.step import init_state, make_step

Params = Any


class Given(NamedTuple):
    """The data for training an arm.

    Attributes:
      batches: Grain's iterator over batches of batch_size * accumulation_steps rows.
      place: a function that puts a batch on the devices.
      frozen: the model's other parameters, if not all are trained. They are not in
        checkpoints.
      information: the information about the base model, see `optimizers.Inputs`.
      term: a function from a step's number to the term of replay; None without replay.
    """

    batches: Iterator[Batch]
    place: Place
    frozen: Params | None = None
    information: Any = None
    term: Callable[[int], replay.Term] | None = None


def train(
    config: Config,
    arm: Arm,
    graph: nnx.GraphDef,
    params: Params,
    given: Given,
    files: ArmFiles,
) -> tuple[Params, Position]:
    """Trains one arm to its last step, from its newest valid checkpoint if there is
    one.

    Args:
      config: the run's settings.
      arm: the optimizer and its rate.
      graph: the model's structure.
      params: the initial trained parameters, which are donated and must not be used
        again.
      given: the data for training.
      files: the arm's checkpoints and metrics.

    Returns:
      The final `params`, and the arm's position.

    Raises:
      InputError: a checkpoint cannot be read or written, or the gradients of too many
        steps in a row are not finite.
      status.Stopped: a signal was received, and the current step has been saved.
    """
    transformation = make(arm.optimizer, config, arm.peak, given.information)
    state = init_state(transformation, params)
    # From here on, the state has what the optimizer needs.
    given = given._replace(information=without_matrices(given.information))
    transformation = make(arm.optimizer, config, arm.peak, given.information)
    params, state, position = files.restore(params, state, given.batches)
    passes = config.accumulation_steps
    step = make_step(graph, transformation, passes, params, state, given.frozen)
    rate = schedule(config, arm.peak)
    if position.step and hosts.is_first():
        tqdm.tqdm.write(f"{arm.name} resumes from step {position.step}")
    with (
        progress.bar(config.steps, position.step, arm.name) as bar,
        deferred() as asked,
    ):
        meter = progress.Meter(position)
        skips = progress.Skips(config.max_skipped_steps, arm.name, files, position)
        while position.step < config.steps:
            batch = next(given.batches)
            number = position.step + 1
            logged = number % config.log_every == 0 or number == config.steps
            term = None if given.term is None else given.term(number)
            params, state, metrics = step(params, state, given.place(batch), term)
            tokens = position.tokens + token_count(batch)
            position = dataclasses.replace(position, step=number, tokens=tokens)
            skips.add(number, batch, finite := metrics.pop("finite"))
            stopping = _stopping(asked(), logged)
            due = number % config.checkpoint_every == 0 or number == config.steps
            if logged or due or stopping:
                position = skips.counted(position)
            if logged:
                values = {name: float(value) for name, value in metrics.items()}
                skipped = not finite
                # The number of steps before this one that the optimizer made.
                made = number - 1 - (position.skipped - skipped)
                if skipped or not made:  # Two selections are compared.
                    del values["mask_overlap"]
                position, speeds = meter.read(position)
                values["learning_rate"] = float(np.asarray(rate(made)))
                row = {"arm": arm.name, "step": number, "tokens": tokens}
                files.log({**row, "skipped": skipped, **values, **speeds})
                speed = speeds["tokens_per_second"]
                bar.set_postfix_str(f"loss {values['loss']:.3f}, {speed:,.0f} tokens/s")
            bar.update()
            if due or stopping:
                meter.pause()
                files.save(position, params, state, given.batches)
                meter.resume()
            if stopping and jax.process_count() > 1:
                # Only another process may have received the signal.
                raise hosts.everywhere(Stopped(signal.SIGTERM))
            if stopping:
                break
    return params, position


def _stopping(asked: bool, logged: bool) -> bool:
    """Returns whether to save and end after this step, the same on every process.

    JAX's own notice of preemption (`multihost_utils.reached_preemption_sync_point`,
    which Orbax uses too) is not used, because it handles SIGTERM but not Ctrl-C,
    requires `jax.distributed` even for a single process, and lets further steps pass.
    """
    if jax.process_count() == 1:
        return asked
    return logged and any(hosts.gathered(asked))
