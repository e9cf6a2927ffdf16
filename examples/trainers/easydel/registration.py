"""Adds MoFO to EasyDeL's registry of optimizers.

After this module is imported, `optimizer="mofo"` is accepted wherever
`optimizer="adamw"` is, and `extra_optimizer_kwargs` set the fields of `MoFOConfig`.
"""

import dataclasses

import optax
from eformer.optimizers import (  # pyright: ignore[reportMissingImports]
    AdamWConfig,
    OptimizerBuilder,
    register_optimizer,
)

import mofo_jax


@dataclasses.dataclass
class MoFOConfig(AdamWConfig):
    """EasyDeL's options of AdamW, and those of MoFO.

    EasyDeL applies `weight_decay` after the optimizer, to every coordinate. For MoFO's
    decay, which applies to selected coordinates only, set `weight_decay` to 0 and set
    `selected_decay`.
    """

    update_fraction: float = 0.15
    score: str = "momentum"
    ties: str = "all"
    selected_decay: float = 0.0


@register_optimizer("mofo")
@dataclasses.dataclass
class MoFOOptimizer(OptimizerBuilder):
    """Makes MoFO from its configuration."""

    config: MoFOConfig

    def build(self, scheduler: optax.Schedule) -> optax.GradientTransformation:
        """Returns MoFO with a schedule as its learning rate."""
        options = {
            field.name: getattr(self.config, field.name)
            for field in dataclasses.fields(self.config)
        }
        decay = options.pop("selected_decay")
        return mofo_jax.mofo(scheduler, weight_decay=decay, **options)
