"""What is done about ties: coordinates that equal the threshold of their block."""

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
    """Selects all that reach the thresholds, contest by contest."""
    return [
        tuple(tensor.reaching(bracket.low) for tensor in contest.tensors)
        for contest, bracket in zip(contests, brackets, strict=True)
    ]


def masks_without_ties(
    contests: Sequence[Contest], brackets: Sequence[Bracket]
) -> Masks:
    """Selects exactly the wanted number: of equals, those that come first.

    The first is the one with the lowest row-major index in its block, in the first of
    the contest's tensors. Coordinates that are tied are ranked again, by their place:
    the same search, with the same few collectives, however the tensors are sharded.

    Raises:
      ValueError: If a block has too many coordinates to number them by 32 bits.
    """
    pairs = list(zip(contests, brackets, strict=True))
    tied = [_among_tied(contest, bracket) for contest, bracket in pairs]
    masks = []
    for (contest, bracket), second, found in zip(
        pairs, tied, search(tied).brackets, strict=True
    ):
        exact = limbs.equal(bracket.count_low, contest.wanted)
        clear = jnp.where(exact, bracket.low, bracket.high)
        # The places are all different: exactly the wanted number reach `low`.
        masks.append(
            tuple(
                tensor.reaching(clear) | ranked.reaching(_none_where(exact, found.low))
                for tensor, ranked in zip(contest.tensors, second.tensors, strict=True)
            )
        )
    return masks


def _none_where(exact: jax.Array, place: jax.Array) -> jax.Array:
    """Returns a place that no coordinate reaches where there is no choice to make."""
    return jnp.where(exact, np.array(np.iinfo(place.dtype).max, place.dtype), place)


def _among_tied(contest: Contest, bracket: Bracket) -> Contest:
    """Returns the contest among the tied coordinates, the first ranking highest."""
    size = contest.block_size
    if size >= 2**31:
        raise ValueError(
            '`ties` must be "all" for blocks of 2**31 coordinates or more, got a block '
            f"of {size}: `block_axes` can divide it"
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
    """Ranks the tied coordinates of a tensor by their place, and no others."""

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
