"""The compared methods."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from examples.finetune.command.config import Config, strength
from examples.finetune.command.optimizers import COVARIANCES, NEEDS

OWN_TEXTS = 96  # number of texts by the start for covariances, about 9,000 tokens
WARMUP = 1 / 12  # Share of the steps with an increasing rate.
# The names of optimizers in stored rows, where they differ.
FORMER_NAMES = {
    "inverse_covariance": "inverse",
    "inverse_covariance_of_mofo": "inverse_behind_mofo",
    "mofo_inverse_covariance": "inverse_filtered",
}
# The options of a method that determine its rows.
DECISIVE = (
    *("update_fraction", "exponent", "strength", "damping", "lora", "b1", "b2", "eps"),
    *("weight_decay", "clip_norm", "schedule"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Attributes:
      title: its name in tables and pictures.
      optimizer: its name in `examples.finetune.training.optimizers`.
      first: the rate with which the search for the level begins.
      options: options of `examples.finetune.command.config.Config` that differ from
        the defaults.
      warmup: share of the steps with an increasing rate.
      batches: the number of rows of a step, relative to other methods.
      frozen: top-level names of the parameters that are not trained.
      own_texts: number of texts by the start that the method uses.
      replay_every: one step in this many replays these texts; 0 for none.
    """

    title: str
    optimizer: str
    first: float = 5e-5
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warmup: float = WARMUP
    batches: int = 1
    frozen: tuple[str, ...] = ()
    own_texts: int = 0
    replay_every: int = 0

    def config(self, seed: int) -> Config:
        """Returns the settings for `examples.finetune.training.optimizers`."""
        # Only methods that draw random numbers receive the seed, so that the others are
        # compiled only once.
        draws = self.optimizer in ("half", "mofo_random") or "lora" in self.options
        drawn = seed if draws else 0
        return Config(optimizer=(self.optimizer,), seed=drawn, **self.options)

    def key(self) -> dict[str, Any]:
        """Returns all settings that determine the method's rows, as JSON.

        Rate, seed and length are not among them.
        """
        config = self.config(0)
        texts = {"own_texts": self.own_texts} if self.own_texts else {}
        replay = {"replay_every": self.replay_every} if self.replay_every else {}
        decisive = {name: getattr(config, name) for name in DECISIVE}
        decisive["strength"] = strength(config, self.optimizer)
        if NEEDS.get(self.optimizer) == COVARIANCES:
            decisive["damping"] = config.covariance_damping
        return {
            **texts,
            **replay,
            "optimizer": FORMER_NAMES.get(self.optimizer, self.optimizer),
            "warmup": round(self.warmup, 4),
            "batches": self.batches,
            "frozen": list(self.frozen),
            # The option's former name, which the stored rows use.
            "rest": config.unselected_scale,
            **decisive,
        }


def _inverse(
    damping: float, optimizer: str = "inverse_covariance", where: str = ""
) -> Method:
    title = f"inverse input covariance {damping:g}{where}"
    options = {"covariance_damping": damping}
    return Method(title, optimizer, 2e-4, options, own_texts=OWN_TEXTS)


def _replay(title: str, every: int) -> Method:
    return Method(title, "adamw", 1e-4, own_texts=OWN_TEXTS, replay_every=every)


def _mofo(title: str, optimizer: str) -> Method:
    return Method(title, optimizer, 1e-4, {"update_fraction": 0.15})


METHODS: dict[str, Method] = {
    "adamw": Method("AdamW", "adamw"),
    "adamw_warmup": Method("AdamW, half of the steps warm-up", "adamw", warmup=1 / 2),
    "adamw_b2": Method("AdamW, b2 = 0.95", "adamw", options={"b2": 0.95}),
    "adamw_batch": Method("AdamW, batches of 16", "adamw", batches=4),
    "adamw_frozen": Method("AdamW, embedding frozen", "adamw", frozen=("embed",)),
    "mofo": _mofo("MoFO 0.15", "mofo"),
    "replay": _replay("AdamW, replay", 1),
    "replay_tenth": _replay("AdamW, replay at every tenth step", 10),
    "inverse": _inverse(0.1),
    "inverse_weak": _inverse(0.3),
    "inverse_strong": _inverse(0.03),
    "inverse_behind_mofo": _inverse(0.1, "inverse_covariance_of_mofo", ", behind MoFO"),
    "inverse_filtered": _inverse(0.1, "mofo_inverse_covariance", ", filtered"),
}
METHODS["inverse_replay"] = dataclasses.replace(
    METHODS["inverse"], title="inverse input covariance 0.1, replay", replay_every=1
)
CONTROLS = ("adamw_warmup", "adamw_b2", "adamw_frozen", "adamw_batch")
REPLAY = ("replay", "replay_tenth", "inverse_replay")
