"""Fine-tuning without forgetting: MoFO and its kin as Optax transformations."""

from importlib.metadata import version as _version

from mofo_jax import scores as scores
from mofo_jax._axes import AxisParts as AxisParts
from mofo_jax._blocks import NORMS_AND_BIASES as NORMS_AND_BIASES
from mofo_jax._blocks import PathRules as PathRules
from mofo_jax._control import ControlFractionState as ControlFractionState
from mofo_jax._control import control_fraction as control_fraction
from mofo_jax._diagnostics import Distance as Distance
from mofo_jax._diagnostics import distance_from_start as distance_from_start
from mofo_jax._diagnostics import ever_moved_share as ever_moved_share
from mofo_jax._diagnostics import mask_overlap as mask_overlap
from mofo_jax._diagnostics import selected_share as selected_share
from mofo_jax._filter import momentum_filter as momentum_filter
from mofo_jax._fisher import KeepFisherState as KeepFisherState
from mofo_jax._fisher import ScaleByNaturalGradientState as ScaleByNaturalGradientState
from mofo_jax._fisher import fisher_information as fisher_information
from mofo_jax._fisher import keep_fisher as keep_fisher
from mofo_jax._fisher import scale_by_natural_gradient as scale_by_natural_gradient
from mofo_jax._half_fine_tuning import CATEGORIES as CATEGORIES
from mofo_jax._half_fine_tuning import half_fine_tuning as half_fine_tuning
from mofo_jax._layouts import block_rules as block_rules
from mofo_jax._master_weights import MasterWeightsState as MasterWeightsState
from mofo_jax._master_weights import master_weights as master_weights
from mofo_jax._mofo import mofo as mofo
from mofo_jax._mofo import scale_by_mofo as scale_by_mofo
from mofo_jax._padam import scale_by_padam as scale_by_padam
from mofo_jax._projection import (
    SelectiveProjectionDecayState as SelectiveProjectionDecayState,
)
from mofo_jax._projection import (
    selective_projection_decay as selective_projection_decay,
)
from mofo_jax._start import (
    ElasticWeightConsolidationState as ElasticWeightConsolidationState,
)
from mofo_jax._start import PullToStartState as PullToStartState
from mofo_jax._start import elastic_weight_consolidation as elastic_weight_consolidation
from mofo_jax._start import pull_to_start as pull_to_start
from mofo_jax._threshold import magnitude_threshold as magnitude_threshold
from mofo_jax._threshold import selection_passes as selection_passes
from mofo_jax._threshold import top_fraction_mask as top_fraction_mask
from mofo_jax._weights import interpolate_weights as interpolate_weights
from mofo_jax._weights import prune_difference as prune_difference

__version__ = _version("mofo_jax")

__all__ = (
    "CATEGORIES",
    "NORMS_AND_BIASES",
    "AxisParts",
    "ControlFractionState",
    "Distance",
    "ElasticWeightConsolidationState",
    "KeepFisherState",
    "MasterWeightsState",
    "PathRules",
    "PullToStartState",
    "ScaleByNaturalGradientState",
    "SelectiveProjectionDecayState",
    "block_rules",
    "control_fraction",
    "distance_from_start",
    "elastic_weight_consolidation",
    "ever_moved_share",
    "fisher_information",
    "half_fine_tuning",
    "interpolate_weights",
    "keep_fisher",
    "magnitude_threshold",
    "mask_overlap",
    "master_weights",
    "mofo",
    "momentum_filter",
    "prune_difference",
    "pull_to_start",
    "scale_by_mofo",
    "scale_by_natural_gradient",
    "scale_by_padam",
    "scores",
    "selected_share",
    "selection_passes",
    "selective_projection_decay",
    "top_fraction_mask",
)
