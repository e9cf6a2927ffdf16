"""Training, compiled once per optimizer for any rate and number of steps."""

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.finetune.command.config import Config
from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import (
    LENGTH_STEP,
    Batch,
    evaluation_batches,
    round_up,
    token_count,
    training_batches,
)
from examples.finetune.data.encoding import Example
from examples.finetune.model import lora, parameters, pretrained, sharding
from examples.finetune.training import information, optimizers, own_text, replay
from examples.finetune.training.step import gradients
from examples.study.budget import Budget

Params = Any


class Trained(NamedTuple):
    """The result of training.

    Attributes:
      params: the parameters, on the devices.
      loss: the loss of the last batch, before the last step.
      seconds_per_step: the mean over steps with and without replay of their medians,
        without the steps that may have compiled.
      tokens: the number of tokens read.
    """

    params: Params
    loss: float
    seconds_per_step: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Course:
    """The examples and the length of a training run.

    Attributes:
      examples: the examples to learn from.
      length: tokens of a row.
      steps: optimizer steps.
      warmup_steps: the steps with an increasing rate.
      seed: seed of the shuffles.
      batches: the number of rows of a step, relative to the budget.
      replayed: texts by the start with its predictions, and in one of how many steps
        they are replayed; None for no replay. Such a step has half as many of them as
        examples.
    """

    examples: Sequence[Example]
    length: int
    steps: int
    warmup_steps: int
    seed: int
    batches: int = 1
    replayed: tuple[replay.Texts, int] | None = None


class Trainer:
    """Trains from a start that stays on the host.

    Args:
      source: the opened model.
      budget: sizes and precision.
    """

    def __init__(self, source: pretrained.Source, budget: Budget) -> None:
        self.source, self.budget = source, budget
        self.mesh = sharding.make_mesh("")
        devices = sharding.row_shards(self.mesh)
        if budget.batch_size % devices:
            raise InputError(
                f"a step's {budget.batch_size} rows cannot be dealt out to {devices} "
                "devices; show it fewer, such as by CUDA_VISIBLE_DEVICES=0"
            )
        self._options: dict[str, Any] = {
            "dtype": budget.dtype,
            "scan_layers": True,
            # A fifth faster on two cores, because less memory is used.
            "remat": True,
            "mesh": self.mesh,
        }
        model = pretrained.build(source, **self._options)
        self.graph, params = parameters.split(model)
        self.places = parameters.shardings(params)
        self.quantized = parameters.to_host(params)
        self._spec = sharding.batch_sharding(self.mesh)
        self._steps: dict[tuple[str, Config, tuple[str, ...]], Callable[..., Any]] = {}

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """Puts a batch on the devices."""
        return sharding.place_batch(batch, self._spec)

    def begin(self, start: Params) -> Params:
        """Returns a start's parameters, on the devices."""
        return parameters.place(start, self.places)

    def fisher(self, start: Params) -> Params:
        """Returns a start's Fisher information, on the host."""
        params, length = self.begin(start), Config().sequence_length
        given = self.graph, params, self.source.tokenizer, self.place, length
        shards = sharding.row_shards(self.mesh)
        writer = own_text.Writer(*given, seed=0, row_multiple=shards)
        texts = own_text.batch(writer.texts(self.budget.fisher_sequences), length)
        found = information.fisher(self.graph, params, texts, self.place)
        return parameters.to_host(found)

    def covariances(self, start: Params, written: Sequence[Example]) -> Params:
        """Returns the covariances of the inputs of a start's kernels.

        Args:
          start: the start's parameters, on the host.
          written: the texts to spare.
        """
        longest = round_up(max(len(text.ids) for text in written), LENGTH_STEP)
        batches = evaluation_batches(
            written, batch_size=self.budget.batch_size, sequence_length=longest
        )
        return information.covariances(
            self.graph, self.begin(start), batches, self.place
        )

    def train(
        self,
        optimizer: str,
        config: Config,
        peak: float,
        start: Params,
        course: Course,
        information: Params | None = None,
        frozen: tuple[str, ...] = (),
    ) -> Trained:
        """Trains once.

        Args:
          optimizer: its name in `examples.finetune.training.optimizers`.
          config: its settings; schedule, rate and steps are not used.
          peak: the highest learning rate.
          start: the parameters, on the host.
          course: the examples and the length.
          information: what the optimizer needs to know about the start: its Fisher
            information, or the covariances of its inputs.
          frozen: top-level names of the parameters that are not trained.
        """
        part = self._part(config)
        params, rest = part.begin(self.begin(start))
        state = self._state(optimizer, config, frozen, params, information)
        step = self._step(optimizer, config, frozen, part, params, state, information)
        settings = dataclasses.replace(
            config, steps=course.steps, warmup_steps=course.warmup_steps
        )
        rate = optimizers.schedule(settings, peak)
        head: Any = None if course.replayed is None else replay.head(params, rest)
        steps = zip(self.batches(course), self._replayed(course), strict=False)
        seconds: dict[bool, list[float]] = {}
        tokens, loss = 0, math.nan
        for number, (batch, texts) in enumerate(steps):
            began = time.perf_counter()
            rates = np.asarray(rate(number), np.float32)
            tokens += token_count(batch)
            term = None
            if texts is not None:
                term = replay.Term(self.place(texts), head, jnp.float32(1))
                tokens += token_count(texts)
            given = params, state, self.place(batch), rates, rest, term
            params, state, loss = step(*given)
            loss = float(loss)  # Waits for the step.
            times = seconds.setdefault(term is not None, [])
            times.append(time.perf_counter() - began)
        whole = sum(
            len(times) * statistics.median(times[1:] or times)
            for times in seconds.values()
        )
        return Trained(
            part.finish(params, rest), loss, whole / max(1, course.steps), tokens
        )

    def _replayed(self, course: Course) -> Iterator[Batch | None]:
        """Yields the texts that each step replays, on the host, or None."""
        texts, every = course.replayed or (None, 1)
        shards = sharding.row_shards(self.mesh)
        count = replay.rows_of_step(self.budget.batch_size, shards)
        for step in itertools.count(1):
            if texts is None or step % every:
                yield None
            else:
                yield texts.at(step // every, count)

    def _part(self, config: Config) -> lora.Trained:
        adapter = lora.adapter_of(config)
        adapted = pretrained.structure(self.source, **self._options, adapter=adapter)
        return lora.Trained(*adapted, adapter, config.seed, self.mesh)

    def batches(self, course: Course) -> "itertools.islice[Batch]":
        """Returns the batches of a course, on the host."""
        endless = training_batches(
            course.examples,
            batch_size=self.budget.batch_size * course.batches,
            sequence_length=course.length,
            seed=course.seed,
            pack=False,
        )
        return itertools.islice(endless, course.steps)

    def _state(
        self,
        name: str,
        config: Config,
        frozen: tuple[str, ...],
        params: Params,
        information: Params | None,
    ) -> optax.OptState:
        # With the layout of the step's output; otherwise the step would compile twice.
        optimizer = assemble(name, config, frozen, lambda _: 0.0, information)
        state = optimizer.init(params)
        return jax.device_put(state, sharding.param_shardings(state, self.mesh))

    def _step(
        self,
        name: str,
        config: Config,
        frozen: tuple[str, ...],
        part: lora.Trained,
        params: Params,
        state: optax.OptState,
        information: Params | None,
    ) -> Callable[..., tuple[Params, optax.OptState, jax.Array]]:
        """Returns the compiled step, in which the learning rate is a traced number."""
        found = self._steps.get((name, config, frozen))
        if found is not None:
            return found

        places = parameters.shardings(params), parameters.shardings(state), None

        @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=places)
        def step(
            params: Params,
            state: optax.OptState,
            batch: dict[str, jax.Array],
            rate: jax.Array,
            rest: Params | None,
            term: replay.Term | None,
        ) -> tuple[Params, optax.OptState, jax.Array]:
            # The information about the start is in the state, the only input of a step.
            optimizer = assemble(name, config, frozen, lambda _: rate, information)
            means, grads = gradients(part.graph, params, batch, 1, rest, term)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, means["loss"]

        self._steps[name, config, frozen] = step
        return step


def assemble(
    name: str,
    config: Config,
    frozen: tuple[str, ...],
    rate: optax.Schedule,
    information: Params | None,
) -> optax.GradientTransformationExtraArgs:
    """Returns a method's transformation; the clipped norm omits frozen parameters."""
    whole = optimizers.assemble(name, config, rate, information)
    if not frozen:
        return whole

    def labels(params: Params) -> Params:
        return {
            key: jax.tree.map(lambda _, key=key: key in frozen, tree)
            for key, tree in params.items()
        }

    return optax.partition({False: whole, True: optax.set_to_zero()}, labels)
