"""Adds MoFO and the inverse input covariance to EasyDeL's registry of optimizers.

After this module is imported, `optimizer="mofo"` is accepted wherever
`optimizer="adamw"` is, and `extra_optimizer_kwargs` set the fields of `MoFOConfig`.
`optimizer="inverse_covariance"` needs covariances in `extra_optimizer_kwargs`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
from eformer.optimizers import (  # pyright: ignore[reportMissingImports]
    AdamWConfig,
    OptimizerBuilder,
    register_optimizer,
)

import mofo_jax


@dataclasses.dataclass
class MoFOConfig(AdamWConfig):
    """EasyDeL's options of AdamW, and those of `mofo_jax.mofo`.

    EasyDeL applies `weight_decay` after the optimizer, to every coordinate, with
    `weight_decay_mask`. For MoFO's decay, which applies to selected coordinates only,
    set `weight_decay` to 0 and set `selected_decay` and `selected_decay_mask`.
    """

    update_fraction: Any = 0.15
    block_axes: Any = None
    dense: Any = False
    score: Any = "momentum"
    ties: str = "all"
    unselected_scale: float = 0.0
    nu_dtype: Any = None
    selected_decay: float = 0.0
    selected_decay_mask: Any = None


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
        decay, mask = (
            options.pop(name) for name in ("selected_decay", "selected_decay_mask")
        )
        return mofo_jax.mofo(scheduler, weight_decay=decay, mask=mask, **options)


@dataclasses.dataclass
class InverseCovarianceConfig(AdamWConfig):
    """EasyDeL's options of AdamW, and those of the inverse input covariance.

    `covariances` is a function that returns them, since EasyDeL copies its arguments,
    and shardings cannot be copied.
    """

    covariances: Callable[[], Any] | None = None
    damping: float = 0.3
    covariance_dtype: str = "float32"
    block_size: int | None = None
    rank: int | None = None


@register_optimizer("inverse_covariance")
@dataclasses.dataclass
class InverseCovarianceOptimizer(OptimizerBuilder):
    """Makes Adam followed by the inverse input covariance."""

    config: InverseCovarianceConfig

    def build(self, scheduler: optax.Schedule) -> optax.GradientTransformation:
        """Returns the optimizer with a schedule as its learning rate."""
        config = self.config
        if config.covariances is None:
            raise ValueError("`covariances` must be a function that returns them")
        adam = optax.scale_by_adam(
            config.b1,
            config.b2,
            config.eps,
            config.eps_root,
            mu_dtype=config.mu_dtype,
        )
        inverse = mofo_jax.scale_by_inverse_covariance(
            config.covariances(),
            config.damping,
            dtype=config.covariance_dtype,
            block_size=config.block_size,
            rank=config.rank,
        )
        return optax.chain(adam, inverse, optax.scale_by_learning_rate(scheduler))
