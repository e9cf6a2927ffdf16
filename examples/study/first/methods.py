"""The methods that are compared, each with its sweep of learning rates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from examples.finetune.config import Config

# What several of them share.
LOW, MIDDLE, HIGH = (2.5e-5, 5e-5, 1e-4), (5e-5, 1e-4, 2e-4), (1e-4, 2e-4, 4e-4)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
      title: as tables and pictures name it.
      optimizer: its name in `examples.finetune.optimizers`.
      rates: the sweep of peak learning rates, ascending.
      options: options of `examples.finetune.config.Config` that are not the default's.
    """

    title: str
    optimizer: str
    rates: tuple[float, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, seed: int) -> Config:
        """The settings from which `examples.finetune.optimizers` makes it."""
        # Only what draws at random is given the seed: the others need not be compiled
        # anew for each.
        draws = self.optimizer in ("half", "mofo_random") or "lora" in self.options
        drawn = seed if draws else 0
        return Config(optimizer=(self.optimizer,), seed=drawn, **self.options)


def _mofo(fraction: float, rates: tuple[float, ...]) -> Method:
    return Method(f"MoFO {fraction:g}", "mofo", rates, {"update_fraction": fraction})


def _l2(strength: float, rates: tuple[float, ...]) -> Method:
    return Method(f"L2 pull {strength:g}", "l2", rates, {"strength": strength})


METHODS: dict[str, Method] = {
    "adamw": Method("AdamW", "adamw", (1.25e-5, *LOW, 2e-4)),
    "mofo": _mofo(0.15, (2.5e-5, *MIDDLE)),
    "padam": Method("Padam 0.75", "padam", (2.5e-5, *MIDDLE)),
    "mofo_update": Method("filter by update", "mofo_update", MIDDLE),
    "mofo_gain": Method("filter by gain", "mofo_gain", HIGH),
    "padam_1": Method("Padam 1", "padam", HIGH, {"exponent": 1.0}),
    "mofo_padam": Method("MoFO on Padam 0.75", "mofo_padam", HIGH),
    "mofo_padam_1": Method("MoFO on Padam 1", "mofo_padam", HIGH, {"exponent": 1.0}),
    "mofo_0.05": _mofo(0.05, HIGH),
    "mofo_0.4": _mofo(0.4, MIDDLE),
    "mofo_gradient": Method("filter by gradient", "mofo_gradient", MIDDLE),
    "mofo_adam_ratio": Method("filter by Adam's ratio", "mofo_adam_ratio", MIDDLE),
    "mofo_random": Method("filter by chance", "mofo_random", HIGH),
    "half": Method("half fine-tuning", "half", MIDDLE),
    "l2": _l2(300.0, HIGH),
    "l2_weak": _l2(100.0, MIDDLE),
    "l2_strong": _l2(1000.0, (2.5e-5, 5e-5, *HIGH)),
    # An interpolation of AdamW's run at its highest rate with the start.
    "wise": Method("WiSE-FT", "adamw", (2e-4,)),
    "lora": Method("LoRA 16", "adamw", (5e-4, 1e-3, 2e-3), {"lora": 16}),
    "lora_mofo": Method("MoFO on LoRA 16", "mofo", (1e-3, 2e-3, 4e-3), {"lora": 16}),
    "lion": Method("Lion", "lion", (5e-6, 1e-5, 2e-5)),
    "mofo_lion": Method("MoFO on Lion", "mofo_lion", (1e-5, 2e-5, 4e-5)),
    # The damping is about the Fisher information of a typical coordinate of the start,
    # and makes a step about as large as Adam's.
    "natural": Method("natural gradient", "natural_gradient", LOW, {"damping": 1e-5}),
    "mofo_fisher": Method(
        "filter by gain for Fisher", "mofo_fisher", HIGH, {"damping": 1e-5}
    ),
}
# Shares of the way from the start to the end of AdamW's run.
WISE_SHARES = (0.25, 0.5, 0.75)
