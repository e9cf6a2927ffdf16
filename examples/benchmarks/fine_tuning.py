"""Short training runs with AdamW and MoFO, which take their steps in turn."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tqdm
from flax import nnx

from examples.finetune.command.config import Config
from examples.finetune.command.options import LEARNING_RATES
from examples.finetune.data.batches import Batch, round_up, training_batches
from examples.finetune.data.encoding import encode_rows
from examples.finetune.data.tasks import TASKS
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.decoder_config import DecoderConfig
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import init_state, make_step

OPTIMIZERS = ("adamw", "mofo")
# The rows of a batch, at least; their number is a multiple of that of the devices.
BATCH_SIZE = 8
# The first step includes the compilation, and the second warms up caches.
UNCOUNTED = 2


class Problem(NamedTuple):
    """A model and the batches that it is trained on.

    Attributes:
      name: the model's name.
      tokens: tokens per row.
      config: the settings of the run.
      graph: the model's structure.
      params: the model's parameters, with stacked layers.
      batches: the batches.
    """

    name: str
    tokens: int
    config: Config
    graph: nnx.GraphDef
    params: Any
    batches: Iterator[Batch]


def pretrained_problem(model: str, tokens: int) -> Problem:
    """Returns a pretrained model and batches of the default task.

    Args:
      model: the model, as `examples.finetune` takes it.
      tokens: tokens per row.

    Raises:
      InputError: the model is invalid or cannot be fetched.
    """
    config = Config(model=model, batch_size=_rows(), sequence_length=tokens)
    source = pretrained.open_model(model)
    built = pretrained.build(
        source, scan_layers=config.scan_layers, mesh=sharding.make_mesh(config.mesh)
    )
    rows = TASKS[config.task].rows(
        config.training_rows, seed=config.seed, split="train"
    )
    examples = encode_rows(rows, source.tokenizer, tokens, "the generated rows")
    batches = training_batches(
        examples,
        batch_size=config.batch_size,
        sequence_length=tokens,
        seed=config.seed,
        pack=config.pack,
    )
    return Problem(source.name, tokens, config, *parameters.split(built), iter(batches))


def random_problem(sizes: DecoderConfig, tokens: int) -> Problem:
    """Returns a Llama with random weights and batches of random tokens.

    Args:
      sizes: the sizes of the Llama.
      tokens: tokens per row.
    """
    config = Config(batch_size=_rows(), sequence_length=tokens)
    mesh = sharding.make_mesh(config.mesh)
    graph, params = parameters.split(
        Decoder(sizes, rngs=nnx.Rngs(0), scan_layers=config.scan_layers, mesh=mesh)
    )
    params = jax.device_put(params, sharding.param_shardings(params, mesh))
    rng = np.random.default_rng(0)
    shape = config.batch_size, tokens

    def batches() -> Iterator[Batch]:
        while True:
            yield {
                "tokens": rng.integers(sizes.vocab_size, size=shape, dtype=np.int32),
                "positions": np.broadcast_to(np.arange(tokens, dtype=np.int32), shape),
                "segments": np.ones(shape, np.int32),
                "loss_mask": np.ones(shape, bool),
            }

    return Problem("random weights", tokens, config, graph, params, batches())


def _rows() -> int:
    return round_up(BATCH_SIZE, sharding.row_shards(sharding.make_mesh(Config().mesh)))


class Arm:
    """A training run with one optimizer.

    Attributes:
      seconds: the time of each step; the first includes the compilation.
    """

    def __init__(self, name: str, problem: Problem, start: Any, places: Any) -> None:
        """Places the initial parameters on the devices."""
        transformation = make(name, problem.config, LEARNING_RATES["adamw"])
        self._params = parameters.place(start, places)
        self._state = init_state(transformation, self._params)
        self._step = make_step(
            problem.graph, transformation, 1, self._params, self._state
        )
        self.seconds: list[float] = []

    def step(self, batch: Any) -> None:
        """Takes a training step and records its time."""
        before = time.perf_counter()
        self._params, self._state, _ = self._step(self._params, self._state, batch)
        jax.block_until_ready((self._params, self._state))
        self.seconds.append(time.perf_counter() - before)

    def momenta(self) -> dict[str, jax.Array]:
        """Returns the momenta by parameter path."""
        return parameters.flat(optax.tree.get(self._state.optimizer, "mu"))

    def selected(self) -> dict[str, jax.Array]:
        """Returns masks of the nonzero updates of the last step, by parameter path."""
        return parameters.flat(self._state.selected)


def run(
    problem: Problem, steps: int, look: Callable[[int, Arm], None]
) -> dict[str, list[float]]:
    """Trains with both optimizers, which take their steps in turn.

    Args:
      problem: from `pretrained_problem` or `random_problem`.
      steps: number of steps of each optimizer.
      look: a function that is called after each step, with its number and MoFO's arm.

    Returns:
      The seconds of each step, by optimizer.
    """
    start = parameters.to_host(problem.params)
    places = parameters.shardings(problem.params)
    arms = {name: Arm(name, problem, start, places) for name in OPTIMIZERS}
    spec = sharding.batch_sharding(sharding.make_mesh(problem.config.mesh))
    for number in tqdm.trange(1, steps + 1, desc="fine-tuning", unit="step"):
        batch = jax.device_put(next(problem.batches), spec)
        for arm in arms.values():
            arm.step(batch)
        look(number, arms["mofo"])
    return {name: arm.seconds for name, arm in arms.items()}
