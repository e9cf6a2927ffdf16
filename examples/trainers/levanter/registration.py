"""Registers MoFO in Levanter's registry of optimizers.

After importing this module, `optimizer.type: mofo` is accepted in a configuration, and
`--optimizer.type mofo` on the command line, with the options of Levanter's Adam.
"""

import dataclasses

import optax
from levanter.optim.config import (  # pyright: ignore[reportMissingImports]
    AdamConfig,
    OptimizerConfig,
)

import mofo_jax

# Levanter stacks layers along axis 0.
LAYERS = mofo_jax.PathRules({r"(^|/)stacked/": (0,)}, default=())


@OptimizerConfig.register_subclass("mofo")
@dataclasses.dataclass(frozen=True)
class MoFOConfig(AdamConfig):
    """MoFO's filter around Levanter's Adam, with its clipping and weight decay."""

    update_fraction: float = 0.15
    score: str = "momentum"
    ties: str = "all"

    def build(self, num_train_steps: int) -> optax.GradientTransformation:
        """Returns the optimizer, whose state is that of Levanter's Adam."""
        options = {
            name: getattr(self, name) for name in ("update_fraction", "score", "ties")
        }
        adam = super().build(num_train_steps)
        return mofo_jax.momentum_filter(adam, block_axes=LAYERS, **options)
