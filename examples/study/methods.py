"""The methods that are compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from examples.finetune.command.config import Config

OWN_TEXTS = 96  # of the start, for covariances: about 9,000 tokens
WARMUP = 1 / 12  # Share of the steps in which the rate rises.
# What of a method's options decides its rows.
DECISIVE = (
    *("update_fraction", "exponent", "strength", "damping", "lora", "b1", "b2", "eps"),
    *("weight_decay", "clip_norm", "schedule"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
      title: as tables and pictures name it.
      optimizer: its name in `examples.finetune.training.optimizers`.
      first: the rate with which the search for the level begins.
      options: options of `examples.finetune.command.config.Config` that are not the
        default's.
      warmup: share of the steps in which the rate rises.
      batches: how many times more rows a step has than other methods' steps.
      frozen: names at the first level of the parameters that keep their values.
      own_texts: how many texts of the start the method estimates something on.
    """

    title: str
    optimizer: str
    first: float = 5e-5
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warmup: float = WARMUP
    batches: int = 1
    frozen: tuple[str, ...] = ()
    own_texts: int = 0

    def config(self, seed: int) -> Config:
        """The settings from which `examples.finetune.training.optimizers` makes it."""
        # Only what draws at random is given the seed: the others need not be compiled
        # anew for each.
        draws = self.optimizer in ("half", "mofo_random") or "lora" in self.options
        drawn = seed if draws else 0
        return Config(optimizer=(self.optimizer,), seed=drawn, **self.options)

    def key(self) -> dict[str, Any]:
        """All that decides the method's rows beside rate, seed and length, as JSON."""
        config = self.config(0)
        texts = {"own_texts": self.own_texts} if self.own_texts else {}
        return {
            **texts,
            "optimizer": self.optimizer,
            "warmup": round(self.warmup, 4),
            "batches": self.batches,
            "frozen": list(self.frozen),
            # The option's former name, under which rows are stored.
            "rest": config.unselected_scale,
            **{name: getattr(config, name) for name in DECISIVE},
        }


def _inverse(damping: float, optimizer: str = "inverse", where: str = "") -> Method:
    title = f"inverse input covariance {damping:g}{where}"
    return Method(title, optimizer, 2e-4, {"damping": damping}, own_texts=OWN_TEXTS)


def _mofo(title: str, optimizer: str) -> Method:
    return Method(title, optimizer, 1e-4, {"update_fraction": 0.15})


METHODS: dict[str, Method] = {
    "adamw": Method("AdamW", "adamw"),
    "adamw_warmup": Method("AdamW, half of the steps warm-up", "adamw", warmup=1 / 2),
    "adamw_b2": Method("AdamW, b2 = 0.95", "adamw", options={"b2": 0.95}),
    "adamw_batch": Method("AdamW, batches of 16", "adamw", batches=4),
    "adamw_frozen": Method("AdamW, embedding frozen", "adamw", frozen=("embed",)),
    "mofo": _mofo("MoFO 0.15", "mofo"),
    "inverse": _inverse(0.1),
    "inverse_weak": _inverse(0.3),
    "inverse_strong": _inverse(0.03),
    "inverse_behind_mofo": _inverse(0.1, "inverse_behind_mofo", ", behind MoFO"),
    "inverse_filtered": _inverse(0.1, "inverse_filtered", ", filtered"),
}
CONTROLS = ("adamw_warmup", "adamw_b2", "adamw_frozen", "adamw_batch")
