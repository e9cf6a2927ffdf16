"""The bracket of a block's threshold, and the thresholds that narrow it.

The first thresholds are estimated from the mean and the standard deviation of the
patterns. In later passes, five of the seven thresholds interpolate between the counts
at the bracket's ends and two divide the bracket into thirds. For any data, a pass
therefore leaves at most a third of the patterns, and a search takes no more passes than
a pattern has bits.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mofo_jax._selection import limbs
from mofo_jax._selection.counting import THRESHOLDS, usual_octave
from mofo_jax._selection.limbs import Count
from mofo_jax._selection.patterns import Ranked

# The constants below were chosen for the number of passes that they need on momenta of
# a real fine-tuning run and on synthetic data; see `examples/benchmarks/README.md`.

# The distance of the outermost first thresholds from the guess, in standard deviations
# of the patterns. On most of those data the error of the guess is at most 0.15 of them.
_FIRST_SPREAD = 0.2

# The distance of the outermost later thresholds from the guess: one standard deviation
# of the interpolated count, and at least this share of the bracket per octave of its
# width, up to two octaves, since the counts of a wide bracket do not lie on a line.
_SPREAD_BY_OCTAVE = 0.03
_MOST_LEAST_SPREAD = 0.06

# Between -1 and 1, denser in the middle.
_FIRST_OFFSETS, _OFFSETS = (
    np.sign(places) * np.abs(places) ** np.float32(1.5)
    for places in (
        np.linspace(-1, 1, number, dtype=np.float32)
        for number in (THRESHOLDS - 1, THRESHOLDS - 2)
    )
)


class Bracket(NamedTuple):
    """The patterns between which the thresholds of some blocks lie.

    Attributes:
      low: A pattern that at least the wanted number of coordinates reach.
      high: A larger pattern that fewer coordinates reach.
      count_low: The number of coordinates that reach `low`.
      count_high: The number of coordinates that reach `high`.
    """

    low: jax.Array
    high: jax.Array
    count_low: Count
    count_high: Count


def finished(bracket: Bracket, wanted: Count) -> jax.Array:
    """Returns for each block whether its bracket determines the selection."""
    nothing = limbs.equal(wanted, tuple(jnp.zeros_like(limb) for limb in wanted))
    found = limbs.equal(bracket.count_low, wanted)
    return found | nothing | (bracket.high - bracket.low <= 1)


def first_thresholds(sums: jax.Array, wanted: Count, tensor: Ranked) -> jax.Array:
    """Estimates thresholds from the mean and deviation of the patterns above zero.

    The logarithms of exponentially and Weibull-distributed magnitudes differ only in
    location and scale: their quantiles are those of a Gumbel distribution.

    Args:
      sums: The moments from `counting.moments`, over all shards, `[3, *blocks]`.
      wanted: The number of coordinates that each block selects, limbs of the blocks'
        shape.
      tensor: The tensor that the patterns belong to.

    Returns:
      Patterns, `[THRESHOLDS, *blocks]`.
    """
    above = jnp.maximum(sums[0], 1.0)
    mean = sums[1] / above
    deviation = jnp.sqrt(jnp.maximum(sums[2] / above - mean * mean, 1e-4))
    share = jnp.clip(limbs.to_float(wanted) / above, 1e-12, 0.999)
    euler, gumbel_deviation = np.float32(np.euler_gamma), np.float32(math.pi / 6**0.5)
    normalized = (jnp.log(-jnp.log(share)) + euler) / gumbel_deviation
    offsets = np.float32(_FIRST_SPREAD) * _along(_FIRST_OFFSETS, mean)
    guess = mean[None] + deviation[None] * (normalized[None] + offsets)
    patterns = (guess + np.float32(usual_octave(tensor))) * np.float32(tensor.octave)
    patterns = jnp.clip(patterns, 1.0, np.float32(2.0**tensor.bits * (1 - 2.0**-20)))
    patterns = patterns.astype(tensor.pattern_dtype)
    # The smallest pattern above zero shows whether zeros have to be selected.
    return jnp.concatenate([jnp.ones_like(patterns[:1]), patterns])


def next_thresholds(bracket: Bracket, wanted: Count, octave: int) -> jax.Array:
    """Returns a pass's thresholds within the brackets, `[THRESHOLDS, *blocks]`.

    Args:
      bracket: The brackets.
      wanted: The number of coordinates that each block selects, limbs of the blocks'
        shape.
      octave: The number of patterns between a number and its double; 0 if the patterns
        are not those of floating-point numbers.
    """
    width = bracket.high - bracket.low
    excess = limbs.to_float(limbs.subtract(bracket.count_low, wanted))
    inside = limbs.to_float(limbs.subtract(bracket.count_low, bracket.count_high))
    number = jnp.maximum(limbs.to_float(wanted), 1.0)
    above = jnp.maximum(limbs.to_float(bracket.count_high), 0.5)
    # Within an octave patterns are linear in the magnitude. If magnitudes are
    # distributed exponentially, the logarithm of the count is linear in both.
    guess = jnp.log1p((excess + 0.5) / (number - 0.5)) / jnp.log1p(inside / above)
    guess = jnp.clip(guess, 0.0, 1.0)
    deviation = jnp.sqrt(guess * (1.0 - guess) / jnp.maximum(inside, 1.0))
    octaves = width.astype(jnp.float32) / np.float32(octave or 1)
    least = jnp.minimum(_SPREAD_BY_OCTAVE * octaves, _MOST_LEAST_SPREAD)
    spread = jnp.maximum(deviation, least)
    places = guess[None] + spread[None] * _along(_OFFSETS, guess)
    steps = jnp.clip(places, 0.0, 1.0) * width.astype(jnp.float32)[None]
    near = bracket.low[None] + steps.astype(width.dtype)
    return jnp.concatenate([near, evenly(bracket, 2)])


def evenly(bracket: Bracket, thresholds: int = THRESHOLDS) -> jax.Array:
    """Returns thresholds that divide the brackets evenly, `[thresholds, *blocks]`."""
    width = (bracket.high - bracket.low)[None]
    numbers = _along(np.arange(1, thresholds + 1, dtype=width.dtype), bracket.low)
    parts = np.array(thresholds + 1, width.dtype)
    # In two terms, since the product of a wide bracket and a number may overflow.
    steps = width // parts * numbers + width % parts * numbers // parts
    return bracket.low[None] + steps


def narrowed(
    bracket: Bracket, wanted: Count, thresholds: jax.Array, counts: Count
) -> Bracket:
    """Returns the brackets after a pass: the nearest thresholds on either side.

    Finished brackets stay unchanged, since their blocks may not have been counted.
    """
    low, high, count_low, count_high = bracket
    for i, threshold in enumerate(thresholds):
        count = tuple(limb[i] for limb in counts)
        enough = limbs.at_least(count, wanted)
        raises = enough & (threshold > low)
        lowers = ~enough & (threshold < high)
        low = jnp.where(raises, threshold, low)
        count_low = limbs.where(raises, count, count_low)
        high = jnp.where(lowers, threshold, high)
        count_high = limbs.where(lowers, count, count_high)
    new = Bracket(low, high, count_low, count_high)
    done = finished(bracket, wanted)
    return jax.tree.map(lambda old, new: jnp.where(done, old, new), bracket, new)


def _along(numbers: np.ndarray, blocks: jax.Array) -> np.ndarray:
    """Reshapes numbers, one for each threshold, to broadcast against the blocks."""
    return numbers.reshape((-1,) + (1,) * blocks.ndim)
