"""The data shared by all arms of a run: model, start, training data and devices."""

import contextlib
import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from examples.finetune.command.config import Config, option, to_json
from examples.finetune.data.batches import Batch
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import evaluate
from examples.finetune.model import lora, parameters, pretrained, sharding
from examples.finetune.running import inputs
from examples.finetune.storage.run_directory import claim
from examples.finetune.system import hosts
from examples.finetune.training import replay


@dataclasses.dataclass(frozen=True)
class Setup:
    """The data shared by all arms.

    Attributes:
      config: the run's settings.
      source: the opened model.
      graph: the model's structure.
      trained: the part of the model that is trained.
      start: the initial parameters on the host, from `parameters.keep`.
      places: the shardings of the parameters.
      mesh: the devices.
      spec: the sharding of the rows of a batch.
      training: examples to learn from.
      suite: the texts and questions for measurements.
    """

    config: Config
    source: pretrained.Source
    graph: nnx.GraphDef
    trained: lora.Trained
    start: Any
    places: Any
    mesh: Mesh
    spec: NamedSharding
    training: list[Example]
    suite: evaluate.Suite

    def begin(self) -> Any:
        """Returns the initial parameters of every arm, on the devices."""
        return parameters.place(self.start, self.places)

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """Puts a batch on the devices, if this process has all of its rows."""
        return sharding.place_batch(batch, self.spec)

    @property
    def row_shards(self) -> int:
        """The number of parts into which the rows of a batch are divided."""
        return sharding.row_shards(self.mesh)

    @property
    def replay_rows(self) -> int:
        """The number of replayed texts per batch."""
        asked = self.config.replay_batch_size
        return replay.rows_of_step(self.config.batch_size, self.row_shards, asked)

    def measured_texts(self) -> list[list[int]]:
        """The tokens of the texts on which forgetting is measured."""
        batches = [batch for tokens in self.suite.texts for batch in tokens.batches]
        return [
            row[used != 0].tolist()
            for batch in batches
            for row, used in zip(batch["tokens"], batch["segments"], strict=True)
        ]


def prepare(config: Config, held: contextlib.ExitStack) -> tuple[Setup, Any]:
    """Reads and checks the user's input, locks the run directory and loads the model.

    Args:
      config: checked by `checks.check_options`.
      held: keeps the lock of the run directory until the run ends.

    Returns:
      The data shared by all arms, and the base model's parameters on the devices.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    given = hosts.together(lambda: inputs.find(config))
    source, mesh = given.source, given.mesh
    started = {option(name): value for name, value in to_json(config).items()}
    del started[option("process_id")]
    hosts.check_alike(started | given.settings)
    # Locked until the run ends, since no other process may use the directory.
    hosts.by_first(lambda: held.enter_context(claim(config.output, given.settings)))
    say(f"Loading {source.name}")
    options: dict[str, Any] = {
        "dtype": config.compute_dtype,
        "param_dtype": config.param_dtype,
        "scan_layers": config.scan_layers,
        "remat": config.remat,
        "mesh": mesh,
    }
    adapter = lora.adapter_of(config)
    graph, params = parameters.split(pretrained.build(source, **options))
    adapted = pretrained.structure(source, **options, adapter=adapter)
    setup = Setup(
        config=config,
        source=source,
        graph=graph,
        trained=lora.Trained(*adapted, adapter, config.seed, mesh),
        start=parameters.keep(params),
        places=parameters.shardings(params),
        mesh=mesh,
        spec=sharding.batch_sharding(mesh),
        training=given.training,
        suite=given.suite,
    )
    return setup, params


def say(text: str) -> None:
    """Prints a message at the beginning of a stage."""
    if hosts.is_first():
        print(text, flush=True)


def say_step(text: str) -> None:
    """Prints a message about a part of a stage."""
    say(f"  {text}")
