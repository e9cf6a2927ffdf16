"""The rule: Adam's step, made small in the directions of the start's inputs."""

from collections.abc import Callable
from typing import Any

import optax

import mofo_jax
from examples.finetune.command.config import Config
from examples.finetune.training.optimizers import BLOCK_AXES

Transformation = optax.GradientTransformationExtraArgs


def _adam(config: Config) -> Any:
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _behind(inner: Any, config: Config, covariances: Any) -> Any:
    rule = mofo_jax.scale_by_inverse_covariance(covariances, config.damping)
    return optax.chain(inner, rule)


def _inverse(config: Config, covariances: Any) -> Any:
    return _behind(_adam(config), config, covariances)


def _behind_mofo(config: Config, covariances: Any) -> Any:
    """MoFO selects momenta, and the rule then spreads the step over their columns."""
    selected = mofo_jax.scale_by_mofo(
        *(config.b1, config.b2, config.eps),
        update_fraction=config.update_fraction,
        block_axes=BLOCK_AXES,
    )
    return _behind(selected, config, covariances)


def _filtered(config: Config, covariances: Any) -> Any:
    """The filter ranks the rule's steps, and unselected coordinates do not move."""
    return mofo_jax.momentum_filter(
        _inverse(config, covariances),
        update_fraction=config.update_fraction,
        block_axes=BLOCK_AXES,
        score="update",
    )


# These receive the covariances of the start's inputs on texts that it wrote.
OPTIMIZERS: dict[str, Callable[[Config, Any], Any]] = {
    "inverse": _inverse,
    "inverse_behind_mofo": _behind_mofo,
    "inverse_filtered": _filtered,
}


def assemble(
    name: str, config: Config, rate: optax.Schedule, covariances: Any
) -> Transformation:
    """Returns the whole transformation: clipping, the optimizer, the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        OPTIMIZERS[name](config, covariances),
        optax.scale_by_learning_rate(rate),
    )
