"""The joint search: how the thresholds of all blocks are found by counting.

A pass counts how many coordinates reach each of a few thresholds, for all tensors at
once, so the number of collectives does not grow with the number of tensors. A count is
a reduction: it works under any sharding and moves a few integers, where a sort would
gather the tensor.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._selection import limbs
from mofo_jax._selection.brackets import (
    Bracket,
    evenly,
    finished,
    first_thresholds,
    narrowed,
    next_thresholds,
    pattern_dtype,
)
from mofo_jax._selection.counting import (
    THRESHOLDS,
    Form,
    Ranking,
    count_reaching,
    in_best_form,
    moments,
)
from mofo_jax._selection.lanes import in_lanes
from mofo_jax._selection.limbs import Count

_Tree = TypeVar("_Tree")

# The moments of a contest's tensors, as `_passes.moments` returns them.
_Sums = list[tuple[list[jax.Array], np.ndarray]]


class Contest(NamedTuple):
    """Tensors whose coordinates compete with one another, block by block.

    Attributes:
      members: The tensors, whose patterns and blocks are alike.
      chosen: How many coordinates each block wants: words of shape () or one for each
        block. Zero is allowed.
    """

    members: tuple[Ranking, ...]
    chosen: Count

    @property
    def block_size(self) -> int:
        """The number of coordinates in a block, over all tensors and shards."""
        return sum(member.block_size for member in self.members)


class Found(NamedTuple):
    """What a search found.

    Attributes:
      brackets: For each contest its bracket, of the shape of its blocks. Either
        `count_low` is the number wanted, or `high` is `low + 1`, or nothing was wanted.
      passes: How many passes of counting that took, int32.
    """

    brackets: list[Bracket]
    passes: jax.Array


class _Group(NamedTuple):
    """Contests whose brackets stack, so that one operation serves them all.

    Attributes:
      indices: Which contests.
      contests: They themselves.
      chosen: What they want, words `[contests, *blocks]`.
      bracket: Their widest brackets, stacked.
      first: What to count first, `[thresholds, contests, *blocks]`.
    """

    indices: list[int]
    contests: list[Contest]
    chosen: Count
    bracket: Bracket
    first: jax.Array

    @property
    def ranking(self) -> Ranking:
        """A tensor that stands for all in what they have in common."""
        return self.contests[0].members[0]


def search(contests: Sequence[Contest]) -> Found:
    """Narrows every block's bracket until it tells the chosen coordinates."""
    if not contests:
        return Found([], jnp.zeros((), jnp.int32))
    return in_best_form(functools.partial(_search, contests))


def _search(contests: Sequence[Contest], form: Form) -> Found:
    """Searches by passes of one form."""
    groups = _groups(contests, form)

    def unfinished(carry: tuple[jax.Array, list[Bracket]]) -> jax.Array:
        done = [
            finished(bracket, group.chosen).all()
            for group, bracket in zip(groups, carry[1], strict=True)
        ]
        return ~jnp.stack(done).all()

    def narrow(carry: tuple[jax.Array, list[Bracket]]) -> tuple:
        number, brackets = carry
        return number + 1, [
            _after_a_pass(group, bracket, number, form)
            for group, bracket in zip(groups, brackets, strict=True)
        ]

    start = (jnp.zeros((), jnp.int32), [group.bracket for group in groups])
    passes, brackets = lax.while_loop(unfinished, narrow, start)
    found: dict[int, Bracket] = {}
    for group, bracket in zip(groups, brackets, strict=True):
        for g, i in enumerate(group.indices):
            found[i] = jax.tree.map(lambda leaf, g=g: leaf[g], bracket)
    return Found([found[i] for i in range(len(contests))], passes)


def _after_a_pass(
    group: _Group, bracket: Bracket, number: jax.Array, form: Form
) -> Bracket:
    """Counts once more and narrows the brackets of a group."""
    thresholds = next_thresholds(bracket, group.chosen, group.ranking)
    thresholds = jnp.where(number == 0, group.first, thresholds)
    least, most = bracket.low[None] + 1, bracket.high[None] - 1
    thresholds = jnp.clip(thresholds, least, most)
    done = finished(bracket, group.chosen)
    words = len(group.chosen)
    counts = _join(
        [
            _count(contest, thresholds[:, g], number, done[g], words, form)
            for g, contest in enumerate(group.contests)
        ],
        THRESHOLDS,
    )
    ranking = group.ranking
    if ranking.axis_name:
        counts = limbs.sum_exactly(
            counts,
            lambda word: lax.psum(word, ranking.axis_name),
            ranking.shards,
            words,
        )
    return narrowed(bracket, group.chosen, thresholds, counts)


def _count(
    contest: Contest,
    thresholds: jax.Array,
    number: jax.Array,
    done: jax.Array,
    words: int,
    form: Form,
) -> list[Count]:
    """Counts in this shard how many of each block reach each threshold."""

    def count() -> list[Count]:
        counts = [
            count_reaching(_read_anew(member, number), thresholds, words, form)
            for member in contest.members
        ]
        if len(counts) == 1:
            return counts[0]
        return [
            limbs.sum_exactly(
                tuple(jnp.stack(word) for word in zip(*pieces, strict=True)),
                lambda word: jnp.sum(word, axis=0, dtype=word.dtype),
                len(pieces),
                words,
            )
            for pieces in zip(*counts, strict=True)
        ]

    # Elsewhere than on one CPU the branch would hold a collective. Inside `shard_map`
    # its sides would vary over different axes.
    if form != "operands" or contest.members[0].axis_name:
        return count()
    # What is found needs no further pass.
    nothing = [tuple(jnp.zeros_like(thresholds, limbs.WORD) for _ in range(words))]
    return lax.cond(done.all(), lambda: nothing, count)


def _join(pieces: Sequence[Sequence[_Tree]], number: int) -> _Tree:
    """Concatenates each contest's pieces to arrays `[number, contests, ...]`.

    All at once: on TPU every intermediate array, however small, has 16 kB for itself.
    """

    def concatenated(*leaves: jax.Array) -> jax.Array:
        whole = jnp.concatenate(leaves)
        return whole.reshape(-1, number, *whole.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(concatenated, *(p for of_one in pieces for p in of_one))


def _read_anew(ranking: Ranking, number: jax.Array) -> Ranking:
    """Makes a pass's patterns depend on its number.

    Otherwise XLA computes them once before the loop, a second copy of every tensor.
    """
    # One barrier for each tensor: what passes one together is taken to differ between
    # the same devices.
    _, arrays = lax.optimization_barrier((number, ranking.arrays))
    return ranking._replace(arrays=arrays)


def _groups(contests: Sequence[Contest], form: Form) -> list[_Group]:
    """Gathers contests that are alike and prepares their search.

    Explicitly sharded blocks stack only with blocks that are sharded alike.
    """
    alike: dict[Any, list[tuple[int, _Sums]]] = {}
    for i, contest in enumerate(contests):
        ranking = contest.members[0]
        sums = [moments(member, form) for member in contest.members]
        kind = ranking.bits, ranking.octave, ranking.axis_name, len(contest.chosen)
        alike.setdefault((*kind, str(jax.typeof(sums[0][0][0]))), []).append((i, sums))
    if form == "lanes":
        contests = [
            c._replace(members=tuple(map(in_lanes, c.members))) for c in contests
        ]
    return [
        _group(
            [i for i, _ in found],
            [contests[i] for i, _ in found],
            _join_moments([sums for _, sums in found]),
            form,
        )
        for found in alike.values()
    ]


def _join_moments(found: Sequence[_Sums]) -> jax.Array:
    """Returns the moments of each contest, `[3, contests, *blocks]`."""
    members = [one for sums in found for one in sums]
    whole = _join([pieces for pieces, _ in members], 3)
    scales = np.stack([scale for _, scale in members], axis=1)
    whole *= scales.reshape(*scales.shape, *(1,) * (whole.ndim - 2))
    if len(members) == len(found):
        return whole
    ends = np.cumsum([len(sums) for sums in found])[:-1]
    parts = [part.sum(1, keepdims=True) for part in jnp.split(whole, ends, axis=1)]
    return jnp.concatenate(parts, axis=1)


def _group(
    indices: list[int], contests: list[Contest], sums: jax.Array, form: Form
) -> _Group:
    """Prepares the search of alike contests, given their moments in this shard."""
    ranking = contests[0].members[0]
    if ranking.axis_name:
        sums = lax.psum(sums, ranking.axis_name)
    # Everything that a loop carries must be spread over devices as the counts will be,
    # so it is built on a zero that comes from such a reduction. None of it is computed.
    zero = lax.bitcast_convert_type(sums[0], limbs.WORD) & 0
    chosen = _stack_words([contest.chosen for contest in contests], zero)
    words = len(chosen)
    sizes = [limbs.constant(contest.block_size, words) for contest in contests]
    low = zero.astype(pattern_dtype(ranking))
    bracket = Bracket(
        low=low,
        high=low + np.array(1 << ranking.bits, low.dtype),
        count_low=_stack_words(sizes, zero),
        count_high=tuple(zero for _ in range(words)),
        stalled=zero > 0,
    )
    if ranking.octave:
        first = first_thresholds(sums, chosen, ranking)
    else:
        first = evenly(bracket)
    return _Group(indices, contests, chosen, bracket, first)


def _stack_words(counts: Sequence[Count], zero: jax.Array) -> Count:
    """Stacks counts of shape () or of the blocks', to the shape of `zero`."""
    stacked = []
    for words in zip(*counts, strict=True):
        known = all(isinstance(word, np.ndarray) for word in words)
        whole = np.stack(words) if known else jnp.stack(words)
        missing = tuple(range(whole.ndim, zero.ndim))
        stacked.append(zero + jnp.expand_dims(whole, missing))
    return tuple(stacked)
