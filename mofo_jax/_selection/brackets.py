"""The bracket of a block's threshold, and where to count in order to narrow it.

The first thresholds lie where the mean and the spread of the patterns say; the next by
interpolating between the counts at the bracket's ends; where that does not fit, evenly,
or ever closer to an end. One of them always halves the bracket: whatever the data, no
search takes more passes than patterns have bits.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mofo_jax._selection import limbs
from mofo_jax._selection.counting import THRESHOLDS, Ranking, usual_octave
from mofo_jax._selection.limbs import Count

# The constants below were chosen on the momenta of a real fine-tuning run and on normal
# and cubed Laplace samples, by the mean and the greatest number of passes.

# How far from the guess the first thresholds lie, in standard deviations of the
# patterns. On most of those data the guess is wrong by at most 0.15 of them.
_FIRST_SPREAD = 0.2

# A pass spreads its thresholds by this many standard deviations of the count that
# interpolation guesses, and by at least this share of the bracket for each octave that
# it is wide, up to a tenth, since the counts of a wide bracket do not lie on a line.
_SPREAD = 1.5
_SPREAD_BY_OCTAVE = 0.05
_MOST_LEAST_SPREAD = 0.1

# A pass that leaves more than this share of a bracket's coordinates in it has met a
# distribution that interpolation does not fit; the next pass divides evenly.
_STALLED_SHARE = 0.5

# A bracket of so many octaves, though, is what a first guess leaves that just missed:
# the threshold is close to an end. Three thresholds divide it evenly; from the nearer
# end the others are an eighth of it away, an eighth of that, and so on.
_WIDE_OCTAVES = 16
_SHIFTS = 3 * np.arange(1, THRESHOLDS - 2)

# Between -1 and 1, denser in the middle. There is one less than thresholds: of the
# first one is the least pattern above zero, and of the others one is halfway.
_PLACES = np.linspace(-1, 1, THRESHOLDS - 1, dtype=np.float32)
_OFFSETS = np.sign(_PLACES) * np.abs(_PLACES) ** np.float32(1.5)


class Bracket(NamedTuple):
    """Between which patterns the thresholds of some blocks lie.

    Attributes:
      low: A pattern that at least as many coordinates reach as were to be chosen.
      high: A pattern above it that fewer reach.
      count_low: How many coordinates reach `low`.
      count_high: How many reach `high`.
      stalled: Whether interpolation did not fit the last time.
    """

    low: jax.Array
    high: jax.Array
    count_low: Count
    count_high: Count
    stalled: jax.Array


def finished(bracket: Bracket, chosen: Count) -> jax.Array:
    """Returns for each block whether its bracket tells the chosen coordinates."""
    nothing = limbs.equal(chosen, tuple(jnp.zeros_like(word) for word in chosen))
    found = limbs.equal(bracket.count_low, chosen)
    return found | nothing | (bracket.high - bracket.low <= 1)


def first_thresholds(sums: jax.Array, chosen: Count, ranking: Ranking) -> jax.Array:
    """Guesses thresholds from the mean and the spread of the patterns above zero.

    On a logarithmic scale exponential, Weibull and other stretched magnitudes differ
    only in place and spread: their quantiles are those of one (Gumbel) distribution.

    Args:
      sums: What `_passes.moments` gives, over all shards, `[3, *blocks]`.
      chosen: How many coordinates each block wants, words of the blocks' shape.
      ranking: What the patterns are.

    Returns:
      Patterns, `[THRESHOLDS, *blocks]`.
    """
    above = jnp.maximum(sums[0], 1.0)
    mean = sums[1] / above
    deviation = jnp.sqrt(jnp.maximum(sums[2] / above - mean * mean, 1e-4))
    share = jnp.clip(limbs.to_float(chosen) / above, 1e-12, 0.999)
    euler, gumbel_deviation = np.float32(0.5772157), np.float32(math.pi / math.sqrt(6))
    normalized = (jnp.log(-jnp.log(share)) + euler) / gumbel_deviation
    # One is the least pattern above zero: it shows whether zeros have to be chosen.
    offsets = np.float32(_FIRST_SPREAD) * _along(_OFFSETS, mean)
    guess = mean[None] + deviation[None] * (normalized[None] + offsets)
    patterns = (guess + np.float32(usual_octave(ranking))) * np.float32(ranking.octave)
    patterns = jnp.clip(patterns, 1.0, np.float32(2.0**ranking.bits * (1 - 2.0**-20)))
    patterns = patterns.astype(pattern_dtype(ranking))
    return jnp.concatenate([jnp.ones_like(patterns[:1]), patterns])


def next_thresholds(bracket: Bracket, chosen: Count, ranking: Ranking) -> jax.Array:
    """Places a pass's thresholds, `[THRESHOLDS, *blocks]`, in the brackets."""
    width = bracket.high - bracket.low
    excess = limbs.to_float(limbs.subtract(bracket.count_low, chosen))
    inside = limbs.to_float(limbs.subtract(bracket.count_low, bracket.count_high))
    wanted = jnp.maximum(limbs.to_float(chosen), 1.0)
    above = jnp.maximum(limbs.to_float(bracket.count_high), 0.5)
    # Within an octave patterns are linear in the magnitude, and the logarithm of the
    # count is linear in both where magnitudes fall off exponentially.
    guess = jnp.log1p((excess + 0.5) / (wanted - 0.5)) / jnp.log1p(inside / above)
    guess = jnp.clip(guess, 0.0, 1.0)
    deviation = jnp.sqrt(guess * (1.0 - guess) / jnp.maximum(inside, 1.0))
    octaves = width.astype(jnp.float32) / np.float32(ranking.octave or 1)
    least = jnp.minimum(_SPREAD_BY_OCTAVE * octaves, _MOST_LEAST_SPREAD)
    spread = jnp.maximum(_SPREAD * deviation, least)
    places = guess[None] + spread[None] * _along(_OFFSETS, guess)
    steps = jnp.clip(places, 0.0, 1.0) * width.astype(jnp.float32)[None]
    steps = jnp.concatenate([steps.astype(width.dtype), width[None] // 2])
    few = (inside <= THRESHOLDS) | (width <= THRESHOLDS + 1)
    interpolated = bracket.low[None] + steps
    wide = ~few & (octaves >= _WIDE_OCTAVES) & (ranking.octave > 0)
    divided = jnp.where(
        wide[None], _closer(bracket, 2 * excess > inside), evenly(bracket)
    )
    return jnp.where((bracket.stalled | few)[None], divided, interpolated)


def evenly(bracket: Bracket, thresholds: int = THRESHOLDS) -> jax.Array:
    """Divides the brackets evenly by thresholds, `[thresholds, *blocks]`."""
    width = (bracket.high - bracket.low)[None]
    numbers = _along(np.arange(1, thresholds + 1, dtype=width.dtype), bracket.low)
    parts = np.array(thresholds + 1, width.dtype)
    # In two terms, since the product of a wide bracket and a number overflows.
    steps = width // parts * numbers + width % parts * numbers // parts
    return bracket.low[None] + steps


def _closer(bracket: Bracket, from_high: jax.Array) -> jax.Array:
    """Divides wide brackets ever closer to an end, `[THRESHOLDS, *blocks]`."""
    width = (bracket.high - bracket.low)[None]
    distances = width >> _along(_SHIFTS.astype(width.dtype), bracket.low)
    near = jnp.where(
        from_high[None], bracket.high[None] - distances, bracket.low[None] + distances
    )
    return jnp.concatenate([near, evenly(bracket, THRESHOLDS - len(_SHIFTS))])


def narrowed(
    bracket: Bracket, chosen: Count, thresholds: jax.Array, counts: Count
) -> Bracket:
    """Returns the brackets after a pass: between the nearest counts on either side.

    What is finished stays as it was: it need not have been counted.
    """
    low, high, count_low, count_high, _ = bracket
    for i, threshold in enumerate(thresholds):
        count = tuple(word[i] for word in counts)
        enough = limbs.at_least(count, chosen)
        raises = enough & (threshold > low)
        lowers = ~enough & (threshold < high)
        low = jnp.where(raises, threshold, low)
        count_low = limbs.where(raises, count, count_low)
        high = jnp.where(lowers, threshold, high)
        count_high = limbs.where(lowers, count, count_high)
    before = limbs.subtract(bracket.count_low, bracket.count_high)
    after = limbs.subtract(count_low, count_high)
    left = limbs.to_float(after) / jnp.maximum(limbs.to_float(before), 1.0)
    new = Bracket(low, high, count_low, count_high, left > _STALLED_SHARE)
    done = finished(bracket, chosen)
    return jax.tree.map(lambda old, new: jnp.where(done, old, new), bracket, new)


def pattern_dtype(ranking: Ranking) -> np.dtype:
    """Returns the dtype that holds every pattern and the first that is none."""
    return limbs.WORD if ranking.bits < 32 else np.dtype(np.uint64)


def _along(numbers: np.ndarray, blocks: jax.Array) -> np.ndarray:
    """Gives one number for each threshold the dimensions of thresholds."""
    return numbers.reshape((-1,) + (1,) * blocks.ndim)
