"""MoFO, the Momentum-Filtered Optimizer, and related transformations for Optax."""

from importlib.metadata import version as _version

from mofo_jax import baselines as baselines
from mofo_jax import scores as scores
from mofo_jax._control import ControlFractionState as ControlFractionState
from mofo_jax._control import control_fraction as control_fraction
from mofo_jax._covariances.covariance import InputCovariance as InputCovariance
from mofo_jax._diagnostics import distance_from_start as distance_from_start
from mofo_jax._diagnostics import ever_moved_share as ever_moved_share
from mofo_jax._diagnostics import mask_overlap as mask_overlap
from mofo_jax._diagnostics import selected_share as selected_share
from mofo_jax._filter import momentum_filter as momentum_filter
from mofo_jax._input_covariances import input_covariances as input_covariances
from mofo_jax._inverse_covariance import (
    scale_by_inverse_covariance as scale_by_inverse_covariance,
)
from mofo_jax._master_weights import MasterWeightsState as MasterWeightsState
from mofo_jax._master_weights import master_weights as master_weights
from mofo_jax._mofo import mofo as mofo
from mofo_jax._mofo import scale_by_mofo as scale_by_mofo
from mofo_jax._options.blocks import AxisParts as AxisParts
from mofo_jax._options.layouts import block_rules as block_rules
from mofo_jax._options.path_rules import NORMS_AND_BIASES as NORMS_AND_BIASES
from mofo_jax._options.path_rules import PathRules as PathRules
from mofo_jax._pull_to_start import PullToStartState as PullToStartState
from mofo_jax._pull_to_start import pull_to_start as pull_to_start
from mofo_jax._selection.select import magnitude_threshold as magnitude_threshold
from mofo_jax._selection.select import selection_passes as selection_passes
from mofo_jax._selection.select import top_fraction_mask as top_fraction_mask

__version__ = _version("mofo_jax")

__all__ = (
    "NORMS_AND_BIASES",
    "AxisParts",
    "ControlFractionState",
    "InputCovariance",
    "MasterWeightsState",
    "PathRules",
    "PullToStartState",
    "baselines",
    "block_rules",
    "control_fraction",
    "distance_from_start",
    "ever_moved_share",
    "input_covariances",
    "magnitude_threshold",
    "mask_overlap",
    "master_weights",
    "mofo",
    "momentum_filter",
    "pull_to_start",
    "scale_by_inverse_covariance",
    "scale_by_mofo",
    "scores",
    "selected_share",
    "selection_passes",
    "top_fraction_mask",
)
