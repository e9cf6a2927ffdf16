"""The joint search: how each block's threshold is bracketed by counting.

Each block keeps a bracket of two patterns (unsigned integers that rank coordinates):
enough coordinates reach the lower one, too few reach the upper one. A pass counts how
many reach each of a few thresholds in between, for all tensors at once, so the number
of collectives does not grow with the number of tensors. A count is a reduction: it
works under any sharding and moves a few integers, where a sort would gather the tensor.

Thresholds are placed by interpolating between the counts at the bracket's ends, and one
of them always halves the bracket: whatever the data, no search takes more passes than
patterns have bits.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax import _counts
from mofo_jax._counts import Count
from mofo_jax._passes import THRESHOLDS, Ranking, count_reaching

_Tree = TypeVar("_Tree")

# A pass spreads its thresholds by this many standard deviations of the count that
# interpolation guesses, and by at least this share of the bracket, since the counts of
# a wide bracket do not lie on a line.
_SPREAD = 2.4
_LEAST_SPREAD = 0.003

# Where the thresholds lie within the spread: denser towards the guess.
_OFFSETS = np.sign(np.linspace(-1, 1, THRESHOLDS - 1)) * (
    np.linspace(-1, 1, THRESHOLDS - 1) ** 2
)

# A pass that leaves more than this share of a bracket's coordinates in it has met a
# distribution that interpolation does not fit; the next pass divides evenly.
_STALLED_SHARE = 0.25


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


def search(rankings: Sequence[Ranking]) -> list[Bracket]:
    """Narrows every block's bracket until it tells the chosen coordinates.

    Args:
      rankings: What to rank, one for each tensor.

    Returns:
      For each tensor its bracket, of the block axes' shape. Either `count_low` is the
      number wanted, or `high` is `low + 1`, or nothing was wanted.
    """
    starts = [_start(ranking) for ranking in rankings]
    groups = _groups(starts)
    brackets = [_stack([starts[i][0] for i in group], axis=0) for group in groups]
    chosen = [_stack([starts[i][1] for i in group], axis=0) for group in groups]
    guesses = [_stack([starts[i][2] for i in group], axis=1) for group in groups]

    def unfinished(carry: tuple[jax.Array, list[Bracket]]) -> jax.Array:
        done = [_finished(b, c).all() for b, c in zip(carry[1], chosen, strict=True)]
        return ~jnp.stack(done).all()

    def narrow(carry: tuple[jax.Array, list[Bracket]]) -> tuple:
        number, brackets = carry
        narrowed = []
        for group, bracket, wanted, guess in zip(
            groups, brackets, chosen, guesses, strict=True
        ):
            thresholds = _next_thresholds(bracket, wanted)
            thresholds = jnp.where(number == 0, guess, thresholds)
            least, most = bracket.low[None] + 1, bracket.high[None] - 1
            thresholds = jnp.clip(thresholds, least, most)
            counts = [
                count_reaching(_read_anew(rankings[i], number), thresholds[:, g])
                for g, i in enumerate(group)
            ]
            narrowed.append(
                _narrowed(bracket, wanted, thresholds, _stack(counts, axis=1))
            )
        return number + 1, narrowed

    if rankings:
        first = jnp.zeros((), jnp.int32)
        brackets = lax.while_loop(unfinished, narrow, (first, brackets))[1]
    found: dict[int, Bracket] = {}
    for group, bracket in zip(groups, brackets, strict=True):
        for g, i in enumerate(group):
            found[i] = jax.tree.map(lambda leaf, g=g: leaf[g], bracket)
    return [found[i] for i in range(len(rankings))]


def _start(ranking: Ranking) -> tuple[Bracket, Count, jax.Array]:
    """Returns a tensor's widest bracket, what it wants, and what to count first."""
    # Everything a loop carries must be spread over devices as the counts will be, so
    # it is built on a zero that comes from such a reduction. None of it is computed.
    patterns = ranking.patterns(*ranking.arrays)
    zero = jnp.sum(patterns, axis=ranking.inner_axes, dtype=_counts.WORD)
    if ranking.axis_name:
        zero = lax.psum(zero, ranking.axis_name)
    zero &= 0
    dtype = _counts.WORD if ranking.bits <= 32 else np.dtype(np.uint64)
    size = ranking.block_size
    size_words = _counts.constant(size, _counts.words_needed(size))
    low = zero.astype(dtype)
    bracket = Bracket(
        low=low,
        high=low + np.array(1 << ranking.bits, dtype),
        count_low=tuple(zero + word for word in size_words),
        count_high=tuple(zero for _ in size_words),
        stalled=zero > 0,
    )
    guess = _evenly(bracket) if ranking.guess is None else ranking.guess.astype(dtype)
    return bracket, tuple(zero + word for word in ranking.chosen), guess


def _groups(starts: Sequence[tuple[Bracket, Count, jax.Array]]) -> list[list[int]]:
    """Gathers the tensors whose brackets stack, so that one operation serves them all.

    Explicitly sharded blocks stack only with blocks that are sharded alike.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, (bracket, wanted, _) in enumerate(starts):
        groups.setdefault((str(jax.typeof(bracket.low)), len(wanted)), []).append(i)
    return list(groups.values())


def _stack(trees: Sequence[_Tree], axis: int) -> _Tree:
    """Stacks the arrays of equal trees on a new axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


def _read_anew(ranking: Ranking, number: jax.Array) -> Ranking:
    """Makes a pass's patterns depend on its number.

    Otherwise XLA computes them once before the loop, a second copy of every tensor.
    """
    # One barrier for each tensor: what passes one together is taken to differ between
    # the same devices.
    _, arrays = lax.optimization_barrier((number, ranking.arrays))
    return ranking._replace(arrays=arrays)


def _finished(bracket: Bracket, chosen: Count) -> jax.Array:
    """Returns for each block whether its bracket tells the chosen coordinates."""
    nothing = _counts.equal(chosen, tuple(jnp.zeros_like(word) for word in chosen))
    found = _counts.equal(bracket.count_low, chosen)
    return found | nothing | (bracket.high - bracket.low <= 1)


def _next_thresholds(bracket: Bracket, chosen: Count) -> jax.Array:
    """Places a pass's thresholds, `[THRESHOLDS, *blocks]`, in the brackets."""
    width = bracket.high - bracket.low
    excess = _counts.to_float(_counts.subtract(bracket.count_low, chosen))
    inside = _counts.to_float(_counts.subtract(bracket.count_low, bracket.count_high))
    wanted = jnp.maximum(_counts.to_float(chosen), 1.0)
    above = jnp.maximum(_counts.to_float(bracket.count_high), 0.5)
    # Within an octave patterns are linear in the magnitude, and the logarithm of the
    # count is linear in both where magnitudes fall off exponentially.
    guess = jnp.log1p((excess + 0.5) / (wanted - 0.5)) / jnp.log1p(inside / above)
    guess = jnp.clip(guess, 0.0, 1.0)
    deviation = jnp.sqrt(guess * (1.0 - guess) / jnp.maximum(inside, 1.0))
    spread = jnp.maximum(_SPREAD * deviation, _LEAST_SPREAD)
    offsets = _OFFSETS.reshape((-1,) + (1,) * guess.ndim).astype("f4")
    places = guess[None] + spread[None] * offsets
    steps = jnp.clip(places, 0.0, 1.0) * width.astype(jnp.float32)[None]
    halfway = bracket.low + width // 2
    interpolated = bracket.low[None] + steps.astype(width.dtype)
    interpolated = jnp.concatenate([interpolated, halfway[None]])
    return jnp.where(bracket.stalled[None], _evenly(bracket), interpolated)


def _evenly(bracket: Bracket) -> jax.Array:
    """Divides the brackets evenly by thresholds, `[THRESHOLDS, *blocks]`."""
    step = jnp.maximum((bracket.high - bracket.low) // (THRESHOLDS + 1), 1)
    numbers = np.arange(1, THRESHOLDS + 1, dtype=step.dtype)
    numbers = numbers.reshape((-1,) + (1,) * step.ndim)
    return bracket.low[None] + step[None] * numbers


def _narrowed(
    bracket: Bracket, chosen: Count, thresholds: jax.Array, counts: Count
) -> Bracket:
    """Returns the brackets after a pass: between the nearest counts on either side."""
    low, high, count_low, count_high, _ = bracket
    for i in range(THRESHOLDS):
        threshold, count = thresholds[i], tuple(word[i] for word in counts)
        enough = _counts.at_least(count, chosen)
        raises = enough & (threshold > low)
        lowers = ~enough & (threshold < high)
        low = jnp.where(raises, threshold, low)
        count_low = _counts.where(raises, count, count_low)
        high = jnp.where(lowers, threshold, high)
        count_high = _counts.where(lowers, count, count_high)
    before = _counts.subtract(bracket.count_low, bracket.count_high)
    after = _counts.subtract(count_low, count_high)
    left = _counts.to_float(after) / jnp.maximum(_counts.to_float(before), 1.0)
    return Bracket(low, high, count_low, count_high, left > _STALLED_SHARE)
