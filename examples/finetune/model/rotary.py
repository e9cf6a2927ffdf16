"""Rotary positions: rotations of pairs of a head's coordinates by position."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """A scaling of the rotary frequencies to a longer context.

    Attributes:
      factor: divisor of the lowest frequencies, >= 1.
      low_frequency_factor: frequencies with fewer rotations than this within the
        original context are divided by ``factor``.
      high_frequency_factor: frequencies with more rotations are unchanged; between the
        two, the divisor is interpolated, as in Llama 3.
      original_max_positions: the context of pre-training, in tokens. None divides all
        frequencies by ``factor``, regardless of the two bounds.
    """

    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int | None = None

    def __post_init__(self) -> None:
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if not (1 <= self.factor < np.inf and 0 < low < high < np.inf):
            raise ValueError(
                "its rotary scaling must have 1 <= factor and 0 < low_freq_factor < "
                f"high_freq_factor, got {self.factor}, {low} and {high}."
            )


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Returns the rotation of each pair of coordinates per position.

    Args:
      head_dim: width of a head, ``H``, even.
      theta: base of the frequencies; pair ``i`` rotates by ``theta ** (-2 i / H)``.
      scaling: the scaling of the frequencies, or None.

    Returns:
      float32 ``[H / 2]``, in radians.
    """
    turning = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if scaling is not None and scaling.original_max_positions:
        turns = scaling.original_max_positions * turning / (2 * np.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        turning = turning * (kept + (1 - kept) / scaling.factor)
    elif scaling is not None:
        turning = turning / scaling.factor
    return turning.astype(np.float32)


class Rotary(NamedTuple):
    """The rotation of every pair at every position.

    Attributes:
      cosine: float32 ``[B, T, 1, H / 2]``.
      sine: float32 ``[B, T, 1, H / 2]``.
    """

    cosine: jax.Array
    sine: jax.Array

    @classmethod
    def at(cls, positions_BxT: jax.Array, turning_P: np.ndarray) -> "Rotary":
        """Returns the rotations at integer positions, given ``frequencies(...)``."""
        angles_BxTx1xP = positions_BxT[:, :, None, None] * turning_P[None, None, None]
        return cls(jnp.cos(angles_BxTx1xP), jnp.sin(angles_BxTx1xP))

    def turn(self, x_BxTxNxH: jax.Array) -> jax.Array:
        """Returns ``x`` with pairs ``(x[i], x[i + H/2])`` rotated, dtype kept."""
        # Products are in float32, since in bfloat16 the rounding of angles would exceed
        # whole positions in a long context.
        first, second = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
        turned = (
            first * self.cosine - second * self.sine,
            second * self.cosine + first * self.sine,
        )
        return jnp.concatenate(turned, axis=-1).astype(x_BxTxNxH.dtype)
