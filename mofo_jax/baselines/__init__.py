"""Baselines for MoFO: other optimizers, regularizers, and merging after training.

The first study in `examples/study` compares MoFO with some of them.
"""

from mofo_jax.baselines._ewc import (
    ElasticWeightConsolidationState as ElasticWeightConsolidationState,
)
from mofo_jax.baselines._ewc import (
    elastic_weight_consolidation as elastic_weight_consolidation,
)
from mofo_jax.baselines._fisher import KeepFisherState as KeepFisherState
from mofo_jax.baselines._fisher import fisher_information as fisher_information
from mofo_jax.baselines._fisher import keep_fisher as keep_fisher
from mofo_jax.baselines._half_fine_tuning import CATEGORIES as CATEGORIES
from mofo_jax.baselines._half_fine_tuning import half_fine_tuning as half_fine_tuning
from mofo_jax.baselines._merging import interpolate_weights as interpolate_weights
from mofo_jax.baselines._merging import prune_difference as prune_difference
from mofo_jax.baselines._natural_gradient import (
    ScaleByNaturalGradientState as ScaleByNaturalGradientState,
)
from mofo_jax.baselines._natural_gradient import (
    scale_by_natural_gradient as scale_by_natural_gradient,
)
from mofo_jax.baselines._padam import scale_by_padam as scale_by_padam
from mofo_jax.baselines._projection_decay import (
    SelectiveProjectionDecayState as SelectiveProjectionDecayState,
)
from mofo_jax.baselines._projection_decay import (
    selective_projection_decay as selective_projection_decay,
)

__all__ = (
    "CATEGORIES",
    "ElasticWeightConsolidationState",
    "KeepFisherState",
    "ScaleByNaturalGradientState",
    "SelectiveProjectionDecayState",
    "elastic_weight_consolidation",
    "fisher_information",
    "half_fine_tuning",
    "interpolate_weights",
    "keep_fisher",
    "prune_difference",
    "scale_by_natural_gradient",
    "scale_by_padam",
    "selective_projection_decay",
)
