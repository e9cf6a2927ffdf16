"""Data from the base model's own texts for the arms: replay, and information."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from examples.finetune.command.config import Arm
from examples.finetune.command.optimizers import FISHER, NEEDS
from examples.finetune.data.batches import Batch, evaluation_batches, round_up
from examples.finetune.evaluation import token_losses
from examples.finetune.model import sharding
from examples.finetune.running.setup import Setup, say_step
from examples.finetune.storage import checksums
from examples.finetune.system import hosts
from examples.finetune.training import information, own_text, replay

HIDDEN = "own_text.npz"


class Known:
    """Texts that the base model generated, and what is computed from them on demand."""

    def __init__(self, setup: Setup, params: Any, arms: Sequence[Arm]) -> None:
        """Generates the texts that the arms need, or reads them from the run directory.

        Args:
          setup: the data shared by all arms.
          params: the base model's parameters.
          arms: all arms of the run.

        Raises:
          InputError: the file of the texts is damaged, or the model generates none.
        """
        config = self._config = setup.config
        self._setup = setup
        self._texts: list[own_text.Text] = []
        self._replayed: replay.Texts | None = None
        replays = any(arm.replay for arm in arms)
        if not replays and not any(arm.optimizer in NEEDS for arm in arms):
            return
        say_step("texts of its own")
        self._texts = own_text.kept(
            config.output,
            own_text.Writer(
                setup.graph,
                params,
                setup.source.tokenizer,
                setup.place,
                config.sequence_length,
                config.seed,
                setup.row_shards,
            ),
            # For any arms that the run directory may receive later.
            max(config.replay, config.own_texts),
            setup.measured_texts(),
        )
        if replays:
            self._replayed = self._predictions(params)

    def _predictions(self, params: Any) -> replay.Texts:
        config, setup = self._config, self._setup
        texts = self._texts[: config.replay]
        rows = own_text.batch(texts, config.sequence_length)
        name = checksums.of_json([text.ids for text in texts])
        path = config.output / HIDDEN
        kept: dict[str, token_losses.Hidden] = {}
        if hosts.by_first(path.exists):
            kept = token_losses.load_hidden(path)
        # Texts that were generated again may differ from those that the file is of.
        if name not in kept:
            size = round_up(token_losses.ROWS, setup.row_shards)
            given = setup.graph, params, rows, setup.place, size
            kept = {name: [token_losses.hidden_states(*given)]}
            hosts.by_first(lambda: token_losses.save_hidden(path, kept))
        (hidden,) = kept[name]
        return replay.Texts(texts, config.sequence_length, hidden, config.seed)

    def information(self, arm: Arm, params: Any, frozen: Any) -> Any:
        """Returns the information that the arm's optimizer needs, or None.

        Args:
          arm: the arm.
          params: the parameters to train, before training.
          frozen: the other parameters of the model, or None.
        """
        config, setup = self._config, self._setup
        need = NEEDS.get(arm.optimizer)
        if need is None:
            return None
        texts, length = self._texts[: config.own_texts], config.sequence_length
        graph = setup.trained.graph
        if need == FISHER:
            say_step("Fisher information")
            batch = own_text.batch(texts, length)
            return information.fisher(graph, params, batch, setup.place)
        say_step("covariances of the kernels' inputs")
        batches = evaluation_batches(
            [text.example for text in texts],
            batch_size=round_up(information.ROWS, setup.row_shards),
            sequence_length=length,
        )
        return information.covariances(graph, params, batches, setup.place, frozen)

    def term(
        self, arm: Arm, params: Any, frozen: Any
    ) -> Callable[[int], replay.Term] | None:
        """Returns a function from a step's number to the arm's term of replay, or None.

        Args:
          arm: the arm.
          params: the parameters to train, before training.
          frozen: the other parameters of the model, or None.
        """
        if not arm.replay or self._replayed is None:
            return None
        config, setup, texts = self._config, self._setup, self._replayed
        count = setup.replay_rows * config.accumulation_steps
        own = sharding.own_rows(setup.spec, count)
        head = replay.head(params, frozen)
        weight = jnp.float32(config.replay_weight)

        def term(step: int) -> replay.Term:
            rows: Batch = texts.at(step, count, own)
            return replay.Term(
                sharding.place_rows(rows, setup.spec, count), head, weight
            )

        return term
