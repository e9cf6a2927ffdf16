"""The optimizers that can be compared, by name.

To add one, write a function of the same signature and give it a line in OPTIMIZERS.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from examples.finetune.command.config import Config

if TYPE_CHECKING:
    import optax


class Inputs(NamedTuple):
    """What an optimizer is made of.

    Attributes:
      config: the run's settings.
      rate: the learning rate by step.
      fisher: the Fisher information of the base model, a tree like the parameters; None
        for optimizers that are not in NEEDS_FISHER.
    """

    config: Config
    rate: "optax.Schedule"
    fisher: Any = None


Factory = Callable[[Inputs], "optax.GradientTransformation"]


def _adamw(inputs: Inputs) -> "optax.GradientTransformation":
    import optax

    config = inputs.config
    return optax.adamw(
        inputs.rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
    )


def _lion(inputs: Inputs) -> "optax.GradientTransformation":
    import optax

    config = inputs.config
    return optax.lion(inputs.rate, weight_decay=config.weight_decay)


def _padam(inputs: Inputs) -> "optax.GradientTransformation":
    import optax

    import mofo_jax

    config = inputs.config
    return optax.chain(
        mofo_jax.baselines.scale_by_padam(
            config.b1,
            config.b2,
            config.eps,
            exponent=config.exponent,
            block_axes=block_axes(config),
        ),
        *_ending(inputs),
    )


def _natural_gradient(inputs: Inputs) -> "optax.GradientTransformation":
    import optax

    import mofo_jax

    config = inputs.config
    return optax.chain(
        mofo_jax.baselines.scale_by_natural_gradient(
            inputs.fisher, damping=config.damping, b1=config.b1
        ),
        *_ending(inputs),
    )


def _pulled(norm: str) -> Factory:
    def make(inputs: Inputs) -> "optax.GradientTransformation":
        import optax

        import mofo_jax

        config = inputs.config
        return optax.chain(
            optax.scale_by_adam(config.b1, config.b2, config.eps),
            mofo_jax.pull_to_start(config.strength, norm),
            *_ending(inputs),
        )

    return make


def _ewc(inputs: Inputs) -> "optax.GradientTransformation":
    import optax

    import mofo_jax

    strength = inputs.config.strength
    return optax.chain(
        mofo_jax.baselines.elastic_weight_consolidation(strength, inputs.fisher),
        _adamw(inputs),
    )


def _projected(inputs: Inputs) -> "optax.GradientTransformation":
    import mofo_jax

    config = inputs.config
    return mofo_jax.baselines.selective_projection_decay(
        _adamw(inputs), config.strength, block_axes=block_axes(config)
    )


def _half(inputs: Inputs) -> "optax.GradientTransformation":
    import mofo_jax

    config = inputs.config
    layers = mofo_jax.block_rules("llama", "layer")
    return mofo_jax.baselines.half_fine_tuning(
        _adamw(inputs),
        seed=config.seed,
        stacked_axes=layers if config.scan_layers else (),
    )


def _filtered(inner: Factory, score: Any = "momentum") -> Factory:
    """The filter around another optimizer."""

    def make(inputs: Inputs) -> "optax.GradientTransformation":
        import mofo_jax

        config = inputs.config
        chosen: Any = score(inputs) if callable(score) else score
        return mofo_jax.momentum_filter(
            inner(inputs),
            update_fraction=config.update_fraction,
            block_axes=block_axes(config),
            score=chosen,
            unselected_scale=config.unselected_scale,
        )

    return make


def _adam_ratio(inputs: Inputs) -> Any:
    import mofo_jax

    return mofo_jax.scores.adam_ratio(inputs.config.b2, inputs.config.eps)


def _random(inputs: Inputs) -> Any:
    import mofo_jax

    return mofo_jax.scores.random(inputs.config.seed)


def _gain(inputs: Inputs) -> Any:
    import mofo_jax

    return mofo_jax.scores.gain_for_cost(inputs.config.exponent)


def _gain_for_fisher(inputs: Inputs) -> Any:
    import mofo_jax

    return mofo_jax.scores.gain_for_fisher(inputs.config.damping)


def _with_fisher(inputs: Inputs) -> "optax.GradientTransformation":
    import optax

    import mofo_jax

    return optax.chain(mofo_jax.baselines.keep_fisher(inputs.fisher), _adamw(inputs))


OPTIMIZERS: dict[str, Factory] = {
    "adamw": _adamw,
    "lion": _lion,
    "padam": _padam,
    "natural_gradient": _natural_gradient,
    "mofo": _filtered(_adamw),
    "mofo_gradient": _filtered(_adamw, "gradient"),
    "mofo_adam_ratio": _filtered(_adamw, _adam_ratio),
    "mofo_random": _filtered(_adamw, _random),
    "mofo_update": _filtered(_adamw, "update"),
    "mofo_relative": _filtered(_adamw, "relative_momentum"),
    "mofo_agreement": _filtered(_adamw, "agreement"),
    "mofo_gain": _filtered(_adamw, _gain),
    "mofo_fisher": _filtered(_with_fisher, _gain_for_fisher),
    "mofo_lion": _filtered(_lion),
    "mofo_padam": _filtered(_padam),
    "half": _half,
    "l2": _pulled("l2"),
    "l1": _pulled("l1"),
    "ewc": _ewc,
    "projection": _projected,
}

# These are given the Fisher information of the base model on its own samples.
NEEDS_FISHER = ("natural_gradient", "mofo_fisher", "ewc")


def _ending(inputs: Inputs) -> "list[optax.GradientTransformation]":
    import optax

    decay = inputs.config.weight_decay
    ending = [optax.scale_by_learning_rate(inputs.rate)]
    return [optax.add_decayed_weights(decay), *ending] if decay else ending


def block_axes(config: Config) -> Any:
    """One block a layer where layers are stacked, as without the stacking."""
    return layer_blocks if config.scan_layers else None


def layer_blocks(params: Any) -> Any:
    """Block axes for parameters whose layers are stacked on axis 0.

    Returns:
      The tree with (0,) at the leaves under `layers`, so that each layer is a block
      of its own as without the stacking, and () elsewhere.
    """
    import jax

    return jax.tree_util.tree_map_with_path(
        lambda path, _: (0,) if path[0].key == "layers" else (), params
    )


def schedule(config: Config, peak: float) -> "optax.Schedule":
    """The learning rate by step: a linear warm-up, then a cosine to 0 or constant."""
    import optax

    # The first step already moves: its rate is one part of the warm-up, not 0.
    first = peak / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(first, peak, config.warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        first, peak, config.warmup_steps, config.steps
    )


def make(
    name: str, config: Config, peak: float, fisher: Any = None
) -> "optax.GradientTransformationExtraArgs":
    """The whole transformation of one arm: clipping, then the named optimizer."""
    return assemble(name, config, schedule(config, peak), fisher)


def assemble(
    name: str, config: Config, rate: "optax.Schedule", fisher: Any = None
) -> "optax.GradientTransformationExtraArgs":
    """As `make`, with any learning rate by step, which may be traced."""
    import optax

    optimizer = OPTIMIZERS[name](Inputs(config, rate, fisher))
    if not config.clip_norm:
        return optax.chain(optimizer)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
