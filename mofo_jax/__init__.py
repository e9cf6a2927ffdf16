"""Fine-tuning without forgetting: MoFO and its kin as Optax transformations."""

from importlib.metadata import version as _version

from mofo_jax._blocks import NORMS_AND_BIASES as NORMS_AND_BIASES
from mofo_jax._blocks import PathRules as PathRules
from mofo_jax._filter import momentum_filter as momentum_filter
from mofo_jax._mofo import mofo as mofo
from mofo_jax._mofo import scale_by_mofo as scale_by_mofo
from mofo_jax._threshold import magnitude_threshold as magnitude_threshold
from mofo_jax._threshold import top_fraction_mask as top_fraction_mask

__version__ = _version("mofo_jax")

__all__ = (
    "NORMS_AND_BIASES",
    "PathRules",
    "magnitude_threshold",
    "mofo",
    "momentum_filter",
    "scale_by_mofo",
    "top_fraction_mask",
)
