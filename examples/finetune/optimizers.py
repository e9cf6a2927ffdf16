"""The optimizers that can be compared, by name.

To add one, write a function of the same signature and give it a line in OPTIMIZERS.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from examples.finetune.config import Config

if TYPE_CHECKING:
    import optax


def _adamw(config: Config, rate: "optax.Schedule") -> "optax.GradientTransformation":
    import optax

    return optax.adamw(
        rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
    )


def _mofo(config: Config, rate: "optax.Schedule") -> "optax.GradientTransformation":
    import mofo_jax

    return mofo_jax.mofo(
        rate,
        config.b1,
        config.b2,
        config.eps,
        weight_decay=config.weight_decay,
        update_fraction=config.update_fraction,
        block_axes=layer_blocks if config.scan_layers else None,
    )


Factory = Callable[[Config, "optax.Schedule"], "optax.GradientTransformation"]
OPTIMIZERS: dict[str, Factory] = {"adamw": _adamw, "mofo": _mofo}


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
    name: str, config: Config, peak: float
) -> "optax.GradientTransformationExtraArgs":
    """The whole transformation of one arm: clipping, then the named optimizer."""
    import optax

    optimizer = OPTIMIZERS[name](config, schedule(config, peak))
    if not config.clip_norm:
        return optax.chain(optimizer)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
