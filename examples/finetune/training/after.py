"""Changes of the trained parameters before they are measured and exported."""

from collections.abc import Callable
from typing import Any

import mofo_jax
from examples.finetune.command.config import Config
from examples.finetune.training.optimizers import BLOCK_AXES


def change(config: Config, params: Any, begin: Callable[[], Any]) -> Any:
    """Applies `--after`.

    Args:
      config: the kind of change and its amount.
      params: the trained parameters.
      begin: returns the parameters before training, sharded like `params`.

    Returns:
      A tree like `params`.
    """
    share = config.after_share
    if config.after == "interpolate":
        return mofo_jax.baselines.interpolate_weights(begin(), params, share)
    if config.after == "prune":
        return mofo_jax.baselines.prune_difference(
            begin(), params, share, block_axes=BLOCK_AXES
        )
    return params
