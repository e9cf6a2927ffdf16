"""Training, compiled once for each optimizer, whatever its rate and number of steps."""

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import mofo_jax
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
from examples.finetune.model.llama import causal_mask
from examples.finetune.training import fisher, optimizers
from examples.finetune.training.train import gradients
from examples.study import sparing
from examples.study.budget import Budget

Params = Any


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
      params: the parameters, on the devices.
      loss: of the last batch, before the last step.
      seconds_per_step: the median, without the step that may have compiled.
      tokens: that were read.
    """

    params: Params
    loss: float
    seconds_per_step: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Course:
    """What one training sees.

    Attributes:
      examples: to learn from.
      length: tokens of a row.
      steps: optimizer steps.
      warmup_steps: of them, those in which the rate rises.
      seed: of the shuffles.
      batches: how many times more rows a step has than the budget says.
    """

    examples: Sequence[Example]
    length: int
    steps: int
    warmup_steps: int
    seed: int
    batches: int = 1


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
            # A fifth faster on two cores: less goes through memory.
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
        """A start's parameters, on the devices."""
        return parameters.place(start, self.places)

    def fisher(self, start: Params) -> Params:
        """A start's Fisher information, on the host."""
        config = Config(fisher_sequences=self.budget.fisher_sequences)
        given = self.begin(start), self.source.tokenizer, self.place
        return parameters.to_host(fisher.of_base(config, self.graph, *given))

    def covariances(self, start: Params, written: Sequence[Example]) -> Params:
        """The covariances of the inputs of a start's kernels.

        Args:
          start: its parameters, on the host.
          written: the texts that it is to spare.
        """
        longest = round_up(max(len(text.ids) for text in written), LENGTH_STEP)
        batches = evaluation_batches(
            written, batch_size=self.budget.batch_size, sequence_length=longest
        )

        def apply(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
            model = nnx.merge(self.graph, params)
            mask = causal_mask(batch["segments"])
            return model(batch["tokens"], batch["positions"], mask)

        return mofo_jax.input_covariances(
            apply,
            self.begin(start),
            map(self.place, batches),
            weights=lambda batch: batch["segments"] > 0,
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
          config: what it is made of; its schedule, rate and steps are not used.
          peak: the learning rate at its highest.
          start: the parameters, on the host.
          course: the examples, and how long.
          information: what the optimizer needs to know of the start: its Fisher
            information, or the covariances of its inputs.
          frozen: names at the first level of the parameters that keep their values.
        """
        part = self._part(config)
        params, rest = part.begin(self.begin(start))
        state = self._state(optimizer, config, frozen, params, information)
        step = self._step(optimizer, config, frozen, part, params, state, information)
        settings = dataclasses.replace(
            config, steps=course.steps, warmup_steps=course.warmup_steps
        )
        rate = optimizers.schedule(settings, peak)
        seconds, tokens, loss = [], 0, math.nan
        for number, batch in enumerate(self.batches(course)):
            began = time.perf_counter()
            rates = np.asarray(rate(number), np.float32)
            given = params, state, self.place(batch), rates, rest
            params, state, loss = step(*given)
            loss = float(loss)  # Waits for the step.
            seconds.append(time.perf_counter() - began)
            tokens += token_count(batch)
        median = statistics.median(seconds[1:] or seconds)
        return Trained(part.finish(params, rest), loss, median, tokens)

    def _part(self, config: Config) -> lora.Trained:
        adapter = lora.adapter_of(config)
        adapted = pretrained.structure(self.source, **self._options, adapter=adapter)
        return lora.Trained(*adapted, adapter, config.seed, self.mesh)

    def batches(self, course: Course) -> "itertools.islice[Batch]":
        """The batches of a course, on the host."""
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
        # Laid out as the step gives it back: otherwise it would be compiled twice.
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
        """The compiled step, in which the learning rate is a number like others."""
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
        ) -> tuple[Params, optax.OptState, jax.Array]:
            # What it knows of the start is in the state, which is all a step reads.
            optimizer = assemble(name, config, frozen, lambda _: rate, information)
            loss, grads = gradients(part.graph, params, batch, 1, rest)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        self._steps[name, config, frozen] = step
        return step


def assemble(
    name: str,
    config: Config,
    frozen: tuple[str, ...],
    rate: optax.Schedule,
    information: Params | None,
) -> optax.GradientTransformationExtraArgs:
    """A method's transformation; what is frozen is not in the clipped norm either."""
    if name in sparing.OPTIMIZERS:
        whole = sparing.assemble(name, config, rate, information)
    else:
        whole = optimizers.assemble(name, config, rate, information)
    if not frozen:
        return whole

    def labels(params: Params) -> Params:
        return {
            key: jax.tree.map(lambda _, key=key: key in frozen, tree)
            for key, tree in params.items()
        }

    return optax.partition({False: whole, True: optax.set_to_zero()}, labels)
