"""The optimizers that can be compared, by name.

To add one, write a function of `Inputs` and add it to OPTIMIZERS, with a description in
`examples.finetune.command.optimizers`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import mofo_jax
from examples.finetune.command.config import Config, strength

# If layers are stacked, each layer is one block, as without stacking.
BLOCK_AXES = mofo_jax.block_rules("llama", "layer")


class Inputs(NamedTuple):
    """The inputs for making an optimizer.

    Attributes:
      config: the run's settings.
      rate: the learning rate by step.
      information: the information about the base model that
        `command.optimizers.NEEDS` specifies: its Fisher information, a tree like the
        parameters, or the covariances of its kernels' inputs, from
        `mofo_jax.input_covariances`. None for the other optimizers.
    """

    config: Config
    rate: optax.Schedule
    information: Any = None


Factory = Callable[[Inputs], optax.GradientTransformation]


def _adamw(inputs: Inputs) -> optax.GradientTransformation:
    config = inputs.config
    return optax.adamw(
        inputs.rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
    )


def _adam(config: Config) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _lion(inputs: Inputs) -> optax.GradientTransformation:
    return optax.lion(inputs.rate, weight_decay=inputs.config.weight_decay)


def _padam(inputs: Inputs) -> optax.GradientTransformation:
    config = inputs.config
    padam = mofo_jax.baselines.scale_by_padam(
        config.b1,
        config.b2,
        config.eps,
        exponent=config.exponent,
        block_axes=BLOCK_AXES,
    )
    return optax.chain(padam, *_ending(inputs))


def _natural_gradient(inputs: Inputs) -> optax.GradientTransformation:
    config = inputs.config
    natural = mofo_jax.baselines.scale_by_natural_gradient(
        inputs.information, damping=config.damping, b1=config.b1
    )
    return optax.chain(natural, *_ending(inputs))


def _inverse(inputs: Inputs) -> optax.GradientTransformation:
    config = inputs.config
    return mofo_jax.scale_by_inverse_covariance(
        inputs.information,
        config.covariance_damping,
        dtype=config.covariance_dtype,
        block_size=config.covariance_block_size,
        rank=config.covariance_rank,
    )


def _inverse_covariance(inputs: Inputs) -> optax.GradientTransformation:
    return optax.chain(_adam(inputs.config), _inverse(inputs), *_ending(inputs))


def _inverse_covariance_of_mofo(inputs: Inputs) -> optax.GradientTransformation:
    """The filter in front: what it selects is spread over whole columns."""
    selected = _filtered(lambda inputs: _adam(inputs.config))(inputs)
    return optax.chain(selected, _inverse(inputs), *_ending(inputs))


def _pulled_inverse_covariance(inputs: Inputs) -> optax.GradientTransformation:
    """The pull is behind, so that it is not scaled."""
    pull = mofo_jax.pull_to_start(strength(inputs.config, "l2_inverse_covariance"))
    return optax.chain(_adam(inputs.config), _inverse(inputs), pull, *_ending(inputs))


def _pulled(norm: str) -> Factory:
    def make(inputs: Inputs) -> optax.GradientTransformation:
        pull = mofo_jax.pull_to_start(strength(inputs.config, norm), norm)
        return optax.chain(_adam(inputs.config), pull, *_ending(inputs))

    return make


def _ewc(inputs: Inputs) -> optax.GradientTransformation:
    consolidation = mofo_jax.baselines.elastic_weight_consolidation(
        strength(inputs.config, "ewc"), inputs.information
    )
    return optax.chain(consolidation, _adamw(inputs))


def _projected(inputs: Inputs) -> optax.GradientTransformation:
    return mofo_jax.baselines.selective_projection_decay(
        _adamw(inputs), strength(inputs.config, "projection"), block_axes=BLOCK_AXES
    )


def _half(inputs: Inputs) -> optax.GradientTransformation:
    return mofo_jax.baselines.half_fine_tuning(
        _adamw(inputs), seed=inputs.config.seed, stacked_axes=BLOCK_AXES
    )


def _with_fisher(inputs: Inputs) -> optax.GradientTransformation:
    known = mofo_jax.baselines.keep_fisher(inputs.information)
    return optax.chain(known, _adamw(inputs))


def _filtered(inner: Factory, score: Any = "momentum") -> Factory:
    """Returns the filter around an optimizer, with a score or a function for one."""

    def make(inputs: Inputs) -> optax.GradientTransformation:
        config = inputs.config
        chosen: Any = score(inputs) if callable(score) else score
        return mofo_jax.momentum_filter(
            inner(inputs),
            update_fraction=config.update_fraction,
            block_axes=BLOCK_AXES,
            score=chosen,
            unselected_scale=config.unselected_scale,
        )

    return make


def _adam_ratio(inputs: Inputs) -> Any:
    return mofo_jax.scores.adam_ratio(inputs.config.b2, inputs.config.eps)


def _random(inputs: Inputs) -> Any:
    return mofo_jax.scores.random(inputs.config.seed)


def _gain(inputs: Inputs) -> Any:
    return mofo_jax.scores.gain_for_cost(inputs.config.exponent)


def _gain_for_fisher(inputs: Inputs) -> Any:
    return mofo_jax.scores.gain_for_fisher(inputs.config.damping)


OPTIMIZERS: dict[str, Factory] = {
    "adamw": _adamw,
    "lion": _lion,
    "padam": _padam,
    "natural_gradient": _natural_gradient,
    "inverse_covariance": _inverse_covariance,
    "inverse_covariance_of_mofo": _inverse_covariance_of_mofo,
    "l2_inverse_covariance": _pulled_inverse_covariance,
    "mofo": _filtered(_adamw),
    "mofo_gradient": _filtered(_adamw, "gradient"),
    "mofo_adam_ratio": _filtered(_adamw, _adam_ratio),
    "mofo_random": _filtered(_adamw, _random),
    "mofo_update": _filtered(_adamw, "update"),
    "mofo_relative": _filtered(_adamw, "relative_momentum"),
    "mofo_agreement": _filtered(_adamw, "agreement"),
    "mofo_gain": _filtered(_adamw, _gain),
    "mofo_fisher": _filtered(_with_fisher, _gain_for_fisher),
    "mofo_inverse_covariance": _filtered(_inverse_covariance, "update"),
    "mofo_lion": _filtered(_lion),
    "mofo_padam": _filtered(_padam),
    "half": _half,
    "l2": _pulled("l2"),
    "l1": _pulled("l1"),
    "ewc": _ewc,
    "projection": _projected,
}


def _ending(inputs: Inputs) -> list[optax.GradientTransformation]:
    decay = inputs.config.weight_decay
    ending = [optax.scale_by_learning_rate(inputs.rate)]
    return [optax.add_decayed_weights(decay), *ending] if decay else ending


def schedule(config: Config, peak: float) -> optax.Schedule:
    """Returns the learning rate: a linear warm-up, then a cosine to 0 or a constant."""
    # The rate of the first step is one part of the warm-up rather than 0.
    first = peak / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(first, peak, config.warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        first, peak, config.warmup_steps, config.steps
    )


def make(
    name: str, config: Config, peak: float, information: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole transformation of one arm.

    Args:
      name: the optimizer's name.
      config: the run's settings.
      peak: the highest learning rate.
      information: as in `Inputs`.

    Returns:
      Clipping, followed by the named optimizer, within master weights if the settings
      require them.
    """
    return assemble(name, config, schedule(config, peak), information)


def without_matrices(information: Any) -> Any:
    """Returns information that is enough for updates once the state has been made.

    Args:
      information: as in `Inputs`.

    Returns:
      Covariances without their matrices, which take much memory; anything else as it
      is.
    """

    def is_covariance(node: Any) -> bool:
        return isinstance(node, mofo_jax.InputCovariance)

    def abstract(node: Any) -> Any:
        if not is_covariance(node):
            return node
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), node
        )

    return jax.tree.map(abstract, information, is_leaf=is_covariance)


def assemble(
    name: str, config: Config, rate: optax.Schedule, information: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of `make` with any, possibly traced, learning rate."""
    optimizer = OPTIMIZERS[name](Inputs(config, rate, information))
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    whole = optax.chain(*parts, optimizer)
    return mofo_jax.master_weights(whole) if config.keeps_master_weights else whole
