"""Which coordinates a found bracket chooses, and what is done about ties."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._selection import limbs
from mofo_jax._selection.brackets import Bracket
from mofo_jax._selection.counting import Ranking
from mofo_jax._selection.search import Contest, search


def masks_with_ties(
    contests: Sequence[Contest], brackets: Sequence[Bracket]
) -> list[jax.Array]:
    """Selects all that reach the thresholds, tensor by tensor."""
    return [
        reaches(member, bracket.low)
        for contest, bracket in zip(contests, brackets, strict=True)
        for member in contest.members
    ]


def masks_without_ties(
    contests: Sequence[Contest], brackets: Sequence[Bracket]
) -> list[jax.Array]:
    """Selects exactly the wanted number, ties by tensor, then by row-major index.

    What is tied is ranked again by the number of its tensor, then by its index along
    each axis in turn: the same search, with the same few collectives, however the
    tensors are sharded.
    """
    found = list(zip(contests, brackets, strict=True))
    masks = [[reaches(m, _cut(c, b)) for m in c.members] for c, b in found]
    keys = [_keys(contest) for contest in contests]
    for step in range(max(map(len, keys), default=0)):
        deeper = [i for i, key in enumerate(keys) if step < len(key)]
        ranked = [_rank_tied(*found[i], keys[i][step]) for i in deeper]
        brackets = search(ranked).brackets
        for i, contest, bracket in zip(deeper, ranked, brackets, strict=True):
            found[i] = contest, bracket
            for m, member in enumerate(contest.members):
                masks[i][m] |= reaches(member, _cut(contest, bracket))
    return [mask for contest_masks in masks for mask in contest_masks]


def _cut(contest: Contest, bracket: Bracket) -> jax.Array:
    """Returns the pattern from which on all are chosen without a choice among ties."""
    exact = limbs.equal(bracket.count_low, contest.chosen)
    return jnp.where(exact, bracket.low, bracket.high)


def _keys(contest: Contest) -> list[int]:
    """Returns what ties are ranked by in turn: -1 for the tensor, or an inner axis."""
    depth = max(len(member.inner_axes) for member in contest.members)
    return [-1] * (len(contest.members) > 1) + list(range(depth))


def _rank_tied(contest: Contest, bracket: Bracket, key: int) -> Contest:
    """Returns the contest among the tied coordinates, the lowest index first."""
    exact = limbs.equal(bracket.count_low, contest.chosen)
    missing = limbs.subtract(contest.chosen, bracket.count_high)
    none = tuple(jnp.zeros_like(word) for word in missing)
    lengths = [
        len(contest.members)
        if key < 0
        else member.shape[member.inner_axes[key]]
        if key < len(member.inner_axes)
        else 1
        for member in contest.members
    ]
    longest = max(lengths)

    def ranked(position: int, member: Ranking) -> Ranking:
        def patterns(low: jax.Array, *arrays: jax.Array) -> jax.Array:
            before = member.patterns(*arrays)
            tied = before == _spread(low, member, before.dtype)
            if key < 0:
                index = jnp.full((), position, np.uint32)
            elif key < len(member.inner_axes):
                axis = member.inner_axes[key]
                index = lax.broadcasted_iota(np.uint32, member.shape, axis)
            else:
                index = jnp.zeros((), np.uint32)
            return jnp.where(tied, np.uint32(longest) - index, np.uint32(0))

        return member._replace(
            arrays=(bracket.low, *member.arrays),
            patterns=patterns,
            bits=longest.bit_length(),
            octave=0,
        )

    members = tuple(ranked(i, member) for i, member in enumerate(contest.members))
    return Contest(members, limbs.where(exact, none, missing))


def reaches(ranking: Ranking, per_block: jax.Array) -> jax.Array:
    """Returns where the tensor reaches its block's pattern."""
    patterns = ranking.patterns(*ranking.arrays)
    return patterns >= _spread(per_block, ranking, patterns.dtype)


def _spread(per_block: jax.Array, ranking: Ranking, dtype: np.dtype) -> jax.Array:
    """Gives each block's pattern a shape and dtype that compare with the tensor's."""
    return lax.expand_dims(per_block, ranking.inner_axes).astype(dtype)
