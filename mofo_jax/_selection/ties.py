"""The handling of ties: coordinates that equal the threshold of their block."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._selection import limbs
from mofo_jax._selection.brackets import Bracket
from mofo_jax._selection.limbs import LIMB
from mofo_jax._selection.patterns import Contest, Ranked
from mofo_jax._selection.search import search

Masks = list[tuple[jax.Array, ...]]


def masks_with_ties(contests: Sequence[Contest], brackets: Sequence[Bracket]) -> Masks:
    """Selects all coordinates that reach the thresholds of their blocks."""
    return [
        tuple(tensor.reaching(bracket.low) for tensor in contest.tensors)
        for contest, bracket in zip(contests, brackets, strict=True)
    ]


def masks_without_ties(
    contests: Sequence[Contest], brackets: Sequence[Bracket]
) -> Masks:
    """Selects exactly the wanted number: of tied coordinates, those that come first.

    Tied coordinates are ordered by tensor, and within a tensor by row-major index. They
    are ranked by this order with the same search, which needs the same few collectives
    under any sharding.

    Raises:
      ValueError: If a block has too many coordinates to number them with 32 bits.
    """
    pairs = list(zip(contests, brackets, strict=True))
    tied = [_among_tied(contest, bracket) for contest, bracket in pairs]
    masks = []
    for (contest, bracket), second, found in zip(
        pairs, tied, search(tied).brackets, strict=True
    ):
        exact = limbs.equal(bracket.count_low, contest.wanted)
        clear = jnp.where(exact, bracket.low, bracket.high)
        # All places differ, so exactly the wanted number of coordinates reach `low`.
        masks.append(
            tuple(
                tensor.reaching(clear) | ranked.reaching(_none_where(exact, found.low))
                for tensor, ranked in zip(contest.tensors, second.tensors, strict=True)
            )
        )
    return masks


def _none_where(exact: jax.Array, place: jax.Array) -> jax.Array:
    """Returns `place`, or one that no coordinate reaches if no ties need breaking."""
    return jnp.where(exact, np.array(np.iinfo(place.dtype).max, place.dtype), place)


def _among_tied(contest: Contest, bracket: Bracket) -> Contest:
    """Returns the contest among the tied coordinates, in which the first rank highest.

    Raises:
      ValueError: If a block has too many coordinates to number them with 32 bits.
    """
    size = contest.block_size
    if size >= 2**31:
        raise ValueError(
            '`ties` must be "all" for blocks of 2**31 coordinates or more, got a block '
            f"of {size}: `block_axes` can divide it into smaller blocks"
        )
    exact = limbs.equal(bracket.count_low, contest.wanted)
    missing = limbs.subtract(contest.wanted, bracket.count_high)
    none = tuple(jnp.zeros_like(limb) for limb in missing)
    first, tensors = 0, []
    for tensor in contest.tensors:
        tensors.append(_by_place(tensor, bracket.low, first, size))
        first += tensor.block_size
    return Contest(tuple(tensors), limbs.where(exact, none, missing))


def _by_place(tensor: Ranked, threshold: jax.Array, first: int, size: int) -> Ranked:
    """Ranks the tied coordinates of a tensor by their place; all others rank zero."""

    def patterns(low: jax.Array, *arrays: jax.Array) -> jax.Array:
        before = tensor.patterns(*arrays)
        tied = before == tensor.spread(low, before.dtype)
        place = jnp.full((), first, LIMB)
        stride = 1
        for axis in reversed(tensor.inner_axes):
            index = lax.broadcasted_iota(LIMB, tensor.shape, axis)
            place += np.uint32(stride) * index
            stride *= tensor.shape[axis]
        return jnp.where(tied, np.uint32(size) - place, np.uint32(0))

    return Ranked(
        arrays=(threshold, *tensor.arrays),
        patterns=patterns,
        shape=tensor.shape,
        block_axes=tensor.block_axes,
        bits=size.bit_length(),
        axis_name=tensor.axis_name,
    )
