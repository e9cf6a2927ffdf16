"""What every arm of a run shares: the model, its start, the data and the devices."""

import contextlib
import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from examples.finetune.command.config import Config, option, to_json
from examples.finetune.data.batches import Batch, round_up
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import evaluate
from examples.finetune.model import lora, parameters, pretrained, sharding
from examples.finetune.running import inputs
from examples.finetune.storage.run_directory import claim
from examples.finetune.system import hosts


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every arm shares.

    Attributes:
      config: the run's settings.
      source: the opened model.
      graph: the model's structure.
      trained: the part of it that is trained.
      start: its parameters on the host, as `parameters.keep` keeps them.
      places: their shardings.
      mesh: the devices.
      spec: how the rows of a batch lie on them.
      training: examples to learn from.
      suite: what to measure on.
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
        """The parameters with which every arm begins, on the devices."""
        return parameters.place(self.start, self.places)

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """Puts a batch of which this process has all rows on the devices."""
        return sharding.place_batch(batch, self.spec)

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a batch are divided."""
        return sharding.row_shards(self.mesh)

    @property
    def replay_rows(self) -> int:
        """How many texts of its own go through the model beside a batch."""
        asked = self.config.replay_batch_size or (self.config.batch_size + 1) // 2
        return round_up(asked, self.row_shards)

    def measured_texts(self) -> list[list[int]]:
        """The tokens of the texts on which forgetting is measured."""
        batches = [batch for tokens in self.suite.texts for batch in tokens.batches]
        return [
            row[used != 0].tolist()
            for batch in batches
            for row, used in zip(batch["tokens"], batch["segments"], strict=True)
        ]


def prepare(config: Config, held: contextlib.ExitStack) -> tuple[Setup, Any]:
    """Reads and checks all that the user gave, claims the run directory and loads.

    Args:
      config: checked by `checks.check_options`.
      held: holds the run directory until the run ends.

    Returns:
      What arms share, and the base model's parameters on the devices.

    Raises:
      InputError: something the user gave cannot work.
    """
    given = hosts.together(lambda: inputs.find(config))
    source, mesh = given.source, given.mesh
    started = {option(name): value for name, value in to_json(config).items()}
    del started[option("process_id")]
    hosts.check_alike(started | given.settings)
    # Held until the run ends: nobody else may work there.
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
    """Tells the user what begins."""
    if hosts.is_first():
        print(text, flush=True)


def say_step(text: str) -> None:
    """Tells the user a part of what goes on."""
    say(f"  {text}")
