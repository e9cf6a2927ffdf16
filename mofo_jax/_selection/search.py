"""The joint search for the thresholds of all blocks, by counting.

A pass counts the coordinates that reach each of a few thresholds in all tensors at
once, so that the number of collectives does not grow with the number of tensors.
"""

import dataclasses
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
)
from mofo_jax._selection.counting import (
    THRESHOLDS,
    Form,
    count_reaching,
    in_best_form,
    moments,
)
from mofo_jax._selection.limbs import LIMB, Count
from mofo_jax._selection.patterns import Contest, Ranked, varies_over
from mofo_jax._selection.tpu_layout import in_memory_order

_Tree = TypeVar("_Tree")

# The moments of a contest's tensors, as `counting.moments` returns them.
_Sums = list[tuple[list[jax.Array], np.ndarray]]


class Found(NamedTuple):
    """The result of a search.

    Attributes:
      brackets: The bracket of each contest, of the shape of its blocks. Either
        `count_low` is the wanted number, or `high` is `low + 1`, or the wanted number
        is zero.
      passes: The number of passes, int32.
    """

    brackets: list[Bracket]
    passes: jax.Array


class _Group(NamedTuple):
    """Contests whose brackets can be stacked, so that one operation handles them all.

    Attributes:
      numbers: The positions of the contests among all contests.
      contests: The contests.
      wanted: The numbers of coordinates to select, limbs `[contests, *blocks]`.
      bracket: The initial brackets, stacked.
      first: The thresholds of the first pass, `[thresholds, contests, *blocks]`.
    """

    numbers: list[int]
    contests: list[Contest]
    wanted: Count
    bracket: Bracket
    first: jax.Array


def search(contests: Sequence[Contest]) -> Found:
    """Narrows every block's bracket until it determines the selection."""
    if not contests:
        return Found([], jnp.zeros((), jnp.int32))
    return in_best_form(functools.partial(_search, contests))


def _search(contests: Sequence[Contest], form: Form) -> Found:
    """Runs the search with passes of one form."""
    # Inside `shard_map`, devices leave a loop after different numbers of passes, so a
    # loop must not wait for devices over which the end of others in it may differ.
    loops: dict[Any, list[_Group]] = {}
    for group in _groups(contests, form):
        names = group.contests[0].tensors[0].axis_name
        loops.setdefault((names, varies_over(group.bracket.low)), []).append(group)
    found: dict[int, Bracket] = {}
    passes = jnp.zeros((), jnp.int32)
    for groups in loops.values():
        number, brackets = _loop(groups, form)
        passes = jnp.maximum(passes, number)
        for group, bracket in zip(groups, brackets, strict=True):
            for g, i in enumerate(group.numbers):
                found[i] = jax.tree.map(lambda leaf, g=g: leaf[g], bracket)
    return Found([found[i] for i in range(len(contests))], passes)


def _loop(groups: Sequence[_Group], form: Form) -> tuple[jax.Array, list[Bracket]]:
    """Runs passes over groups until all are finished, and returns their number too."""

    def unfinished(carry: tuple[jax.Array, list[Bracket]]) -> jax.Array:
        done = [
            finished(bracket, group.wanted).all()
            for group, bracket in zip(groups, carry[1], strict=True)
        ]
        return ~jnp.stack(done).all()

    def narrow(
        carry: tuple[jax.Array, list[Bracket]],
    ) -> tuple[jax.Array, list[Bracket]]:
        number, brackets = carry
        return number + 1, [
            _after_a_pass(group, bracket, number, form)
            for group, bracket in zip(groups, brackets, strict=True)
        ]

    # Under `vmap` with explicit axes, JAX 0.10 fails for a carry that is not batched.
    zero = (groups[0].bracket.low.min() & 0).astype(jnp.int32)
    start = (zero, [group.bracket for group in groups])
    return lax.while_loop(unfinished, narrow, start)


def _after_a_pass(
    group: _Group, bracket: Bracket, number: jax.Array, form: Form
) -> Bracket:
    """Runs one pass over a group and returns its narrowed brackets."""
    tensor = group.contests[0].tensors[0]
    thresholds = next_thresholds(bracket, group.wanted, tensor.octave)
    thresholds = jnp.where(number == 0, group.first, thresholds)
    least, most = bracket.low[None] + 1, bracket.high[None] - 1
    thresholds = jnp.clip(thresholds, least, most)
    done = finished(bracket, group.wanted)
    size = len(group.wanted)
    counts = _join(
        [
            _count(contest, thresholds[:, g], number, done[g], size, form)
            for g, contest in enumerate(group.contests)
        ],
        THRESHOLDS,
    )
    if tensor.axis_name:
        add = functools.partial(lax.psum, axis_name=tensor.axis_name)
        counts = limbs.add_up(counts, add, lax.axis_size(tensor.axis_name), size)
    return narrowed(bracket, group.wanted, thresholds, counts)


def _count(
    contest: Contest,
    thresholds: jax.Array,
    number: jax.Array,
    done: jax.Array,
    size: int,
    form: Form,
) -> list[Count]:
    """Counts the coordinates of each block that reach each threshold, in this shard."""

    def count() -> list[Count]:
        counts = [
            tensor.once(
                count_reaching(_read_anew(tensor, number), thresholds, size, form)
            )
            for tensor in contest.tensors
        ]
        if len(counts) == 1:
            return counts[0]
        return [
            limbs.add_up(
                tuple(jnp.stack(limb) for limb in zip(*pieces, strict=True)),
                lambda limb: jnp.sum(limb, axis=0, dtype=limb.dtype),
                len(pieces),
                size,
            )
            for pieces in zip(*counts, strict=True)
        ]

    # On several devices a conditional would contain a collective, and inside
    # `shard_map` its branches would vary over different axes.
    if form != "operands" or contest.tensors[0].axis_name:
        return count()
    # Finished contests are not counted again.
    nothing = [tuple(jnp.zeros_like(thresholds, LIMB) for _ in range(size))]
    return lax.cond(done.all(), lambda: nothing, count)


def _join(pieces: Sequence[Sequence[_Tree]], number: int) -> _Tree:
    """Concatenates the pieces of all contests to arrays `[number, contests, ...]`.

    They are concatenated at once, since on TPU each intermediate array takes 16 kB,
    however small it is.
    """

    def concatenated(*leaves: jax.Array) -> jax.Array:
        whole = jnp.concatenate(leaves)
        return whole.reshape(-1, number, *whole.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(concatenated, *(p for of_one in pieces for p in of_one))


def _read_anew(tensor: Ranked, number: jax.Array) -> Ranked:
    """Makes the patterns of a pass depend on its number.

    Otherwise XLA computes them once before the loop, and stores a second copy of every
    tensor.
    """
    # Each tensor has its own barrier, since all results of one barrier are typed as
    # varying over the same mesh axes.
    _, arrays = lax.optimization_barrier((number, tensor.arrays))
    return dataclasses.replace(tensor, arrays=arrays)


def _groups(contests: Sequence[Contest], form: Form) -> list[_Group]:
    """Groups the contests whose brackets can be stacked, and prepares their search.

    Explicitly sharded blocks can be stacked only with blocks of the same sharding.
    """
    alike: dict[Any, list[tuple[int, _Sums]]] = {}
    for i, contest in enumerate(contests):
        tensor = contest.tensors[0]
        pairs = ((one, moments(one, form)) for one in contest.tensors)
        sums = [(one.once(pieces), scale) for one, (pieces, scale) in pairs]
        kind = tensor.bits, tensor.octave, tensor.axis_name, len(contest.wanted)
        alike.setdefault((*kind, str(jax.typeof(sums[0][0][0]))), []).append((i, sums))
    if form == "lanes":
        contests = [
            dataclasses.replace(c, tensors=tuple(map(in_memory_order, c.tensors)))
            for c in contests
        ]
    return [
        _group(
            [i for i, _ in found],
            [contests[i] for i, _ in found],
            _join_moments([sums for _, sums in found]),
        )
        for found in alike.values()
    ]


def _join_moments(found: Sequence[_Sums]) -> jax.Array:
    """Returns the moments of each contest, `[3, contests, *blocks]`."""
    tensors = [one for sums in found for one in sums]
    whole = _join([pieces for pieces, _ in tensors], 3)
    scales = np.stack([scale for _, scale in tensors], axis=1)
    whole *= scales.reshape(*scales.shape, *(1,) * (whole.ndim - 2))
    if len(tensors) == len(found):
        return whole
    ends = np.cumsum([len(sums) for sums in found])[:-1]
    parts = [part.sum(1, keepdims=True) for part in jnp.split(whole, ends, axis=1)]
    return jnp.concatenate(parts, axis=1)


def _group(numbers: list[int], contests: list[Contest], sums: jax.Array) -> _Group:
    """Prepares the search of a group, given its moments in this shard."""
    tensor = contests[0].tensors[0]
    if tensor.axis_name:
        sums = lax.psum(sums, tensor.axis_name)
    # Values carried by a loop must have the sharding that the counts will have, so they
    # are built from a zero that comes from such a reduction. XLA folds it away.
    zero = lax.bitcast_convert_type(sums[0], LIMB) & 0
    wanted = _stack([contest.wanted for contest in contests], zero)
    size = len(wanted)
    sizes = [limbs.constant(contest.block_size, size) for contest in contests]
    low = zero.astype(tensor.pattern_dtype)
    bracket = Bracket(
        low=low,
        high=low + np.array(1 << tensor.bits, low.dtype),
        count_low=_stack(sizes, zero),
        count_high=tuple(zero for _ in range(size)),
    )
    known = tensor.octave > 0
    first = first_thresholds(sums, wanted, tensor) if known else evenly(bracket)
    return _Group(numbers, contests, wanted, bracket, first)


def _stack(counts: Sequence[Count], zero: jax.Array) -> Count:
    """Stacks counts of shape () or of the blocks' shape to the shape of `zero`."""
    stacked = []
    for limb in zip(*counts, strict=True):
        whole = jnp.stack(limb)
        missing = tuple(range(whole.ndim, zero.ndim))
        stacked.append(zero + jnp.expand_dims(whole, missing))
    return tuple(stacked)
