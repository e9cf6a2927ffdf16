"""Adds `opt_type=mofo` and its options to an installed MaxText, in this process.

MaxText has a closed list of optimizers. This module replaces the functions that read a
configuration, so that its class has more fields, and wraps the one that makes the
optimizer. `upstream.patch` beside this file has the same change for MaxText itself.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import optax
import pydantic  # pyright: ignore[reportMissingImports]  # comes with MaxText
from maxtext.configs import (  # pyright: ignore[reportMissingImports]
    pyconfig,
    types,
)
from maxtext.optimizers import (  # pyright: ignore[reportMissingImports]
    optimizers,
)

import mofo_jax

Make = Callable[[Any, optax.Schedule, Any], optax.GradientTransformation]


class MoFO(pydantic.BaseModel):
    """Configuration fields for MoFO's options, beside MaxText's for Adam."""

    mofo_update_fraction: float = pydantic.Field(
        0.15, gt=0, le=1, description="The fraction of each block that is updated."
    )
    mofo_block: Literal["tensor", "layer", "head", "expert"] = pydantic.Field(
        "layer", description="The blocks, within which coordinates compete."
    )
    mofo_dense: list[str] = pydantic.Field(
        default_factory=list,
        description="Regular expressions for the paths of tensors updated entirely.",
    )
    mofo_score: str = pydantic.Field(
        "momentum", description="The score that ranks coordinates; see `mofo_jax.mofo`."
    )
    mofo_ties: Literal["all", "exact"] = pydantic.Field(
        "all", description="Whether all coordinates tied at the threshold are updated."
    )
    mofo_decay: Literal["selected", "all"] = pydantic.Field(
        "selected", description="Which coordinates `adam_weight_decay` is applied to."
    )


class Config(MoFO, types.MaxTextConfig):
    """MaxText's configuration with an additional optimizer."""

    opt_type: types.OptimizerType | Literal["mofo"] = pydantic.Field(
        types.OptimizerType.ADAMW, description="The type of optimizer to use."
    )


class _Branch:
    """A configuration that differs only in `opt_type`."""

    def __init__(self, config: Any, opt_type: str) -> None:
        self.config, self.opt_type = config, opt_type

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def block_axes(config: Any) -> Any:
    """Returns the axes of MaxText's tensors that index blocks.

    Raises:
      ValueError: with pipeline parallelism, blocks are not whole tensors.
    """
    if config.mofo_block == "tensor":
        return None
    if config.using_pipeline_parallelism:
        raise ValueError(
            "mofo_block must be 'tensor' with pipeline parallelism, which stacks "
            f"layers by stages, got {config.mofo_block!r}"
        )
    return mofo_jax.block_rules(
        "maxtext", config.mofo_block, layer_axis=config.param_scan_axis
    )


def make_mofo(
    config: Any, schedule: optax.Schedule, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """Makes MoFO with the hyperparameters that MaxText passes to `optax.adamw`."""
    return mofo_jax.mofo(
        schedule,
        b1=config.adam_b1,
        b2=config.adam_b2,
        eps=config.adam_eps,
        eps_root=config.adam_eps_root,
        weight_decay=config.adam_weight_decay,
        mu_dtype=config.mu_dtype,
        mask=mask,
        update_fraction=config.mofo_update_fraction,
        block_axes=block_axes(config),
        dense=mofo_jax.PathRules(dict.fromkeys(config.mofo_dense, True), default=False),
        score=config.mofo_score,
        ties=config.mofo_ties,
        decay=config.mofo_decay,
    )


def with_mofo(get_optimizer: Any, make: Make) -> Any:
    """Returns MaxText's `get_optimizer` with a branch for MoFO.

    The branch replaces that of `adam_pax`, so that MaxText applies its own wrappers to
    MoFO too: frozen parameters, and steps skipped on spikes.
    """

    @functools.wraps(get_optimizer)
    def wrapped(config: Any, schedule: Any, *args: Any, **kwargs: Any) -> Any:
        if config.opt_type != "mofo":
            return get_optimizer(config, schedule, *args, **kwargs)

        def branch(*_: Any, mask: Any, **__: Any) -> Any:
            return make(config, schedule, mask)

        with mock.patch.object(optimizers, "adam_pax", branch):
            adam_pax = _Branch(config, "adam_pax")
            return get_optimizer(adam_pax, schedule, *args, **kwargs)

    return wrapped


def register(make: Make = make_mofo) -> None:
    """Makes MaxText accept `opt_type=mofo`.

    Its programs for reinforcement learning always use AdamW.

    Args:
      make: makes the optimizer from MaxText's configuration, the schedule of the
        learning rate, and the mask of weight decay. By default it is MoFO.
    """
    get_optimizer = optimizers.get_optimizer
    if hasattr(get_optimizer, "__wrapped__"):
        get_optimizer = get_optimizer.__wrapped__
    else:
        for name in ("initialize", "initialize_pydantic"):
            read = functools.partial(getattr(pyconfig, name), config_class=Config)
            setattr(pyconfig, name, read)
    optimizers.get_optimizer = with_mofo(get_optimizer, make)
