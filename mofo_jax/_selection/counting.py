"""One pass over a tensor: how many coordinates of each block reach each threshold.

A count is a reduction: it works under any sharding and moves a few integers between
devices, where a sort would gather the tensor. The speed of the reduction depends on how
it is written, which is called its form; the best form differs between platforms.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mofo_jax._selection import limbs
from mofo_jax._selection.limbs import LIMB, Count
from mofo_jax._selection.patterns import Ranked

# Moments are computed in eighths of an octave, up to 32 octaves on either side.
_PARTS_OF_OCTAVE = 8
_FARTHEST = 255

# The number of thresholds counted in one pass. Seven need three or four passes on the
# momenta of a real run, four need one more. On CPU, eight take 1.4 times as long as
# two; on TPU, by the compiler's estimate, seven take 1.1 times as long as one; on GPU,
# a pass is bound by memory bandwidth.
THRESHOLDS = 7

# The forms of a pass:
# "sums", the default: one sum for each threshold over as much of the tensor as
#   possible. This minimizes the data exchanged between devices and kept in small
#   arrays, each of which takes 16 kB on a TPU.
# "lanes", for TPU: the same, with the axes in the order in which a TPU stores them.
#   Without it, a tree of attention kernels with separate heads, compiled for eight v5e
#   chips, needed copies as large as all of the parameters.
# "rows", for GPU: sums over each row, then over the rows for all thresholds at once.
#   Compiled for an H100, this takes 3 kernels per tensor and pass instead of 12.
# "operands", for one CPU: a reduction of several operands, which XLA compiles to code
#   ten times as fast as its rewritten sums.
# There is no Pallas kernel: compiled for TPU and for H100, these forms already read
# each tensor once per pass, and JAX does not partition a kernel over Auto axes.
Form = Literal["sums", "lanes", "rows", "operands"]

_Result = TypeVar("_Result")


def in_best_form(compute: Callable[[Form], _Result]) -> _Result:
    """Calls `compute` with the form for the platform.

    The platform is known only when the program is lowered, since a program may be
    compiled for another platform than the one it is traced on.
    """
    forms: dict[str, Form] = {"cuda": "rows", "tpu": "lanes"}
    if _is_one_cpu():
        forms["cpu"] = "operands"
    return lax.platform_dependent(
        default=functools.partial(compute, "sums"),
        **{name: functools.partial(compute, form) for name, form in forms.items()},
    )


def _is_one_cpu() -> bool:
    """Returns whether there is one CPU device, so that its arrays are not sharded.

    On several devices, a reduction of several operands gathers the partial results of
    the shards, where plain sums need only an all-reduce.
    """
    try:
        return jax.device_count("cpu") == 1
    except RuntimeError:  # The CPU is not among the platforms in use.
        return False


def count_reaching(
    tensor: Ranked, thresholds: jax.Array, limbs_wanted: int, form: Form
) -> list[Count]:
    """Counts the coordinates of each block that reach each threshold, in this shard.

    Args:
      tensor: The tensor whose coordinates are counted.
      thresholds: Patterns, `[thresholds, *blocks]`.
      limbs_wanted: The number of limbs of a count.
      form: The form of the sums.

    Returns:
      The counts in one or more pieces, whose concatenation has limbs of the shape of
      `thresholds`.
    """
    patterns = tensor.patterns(*tensor.arrays)
    reached = [
        (patterns >= tensor.spread(threshold, patterns.dtype)).astype(LIMB)
        for threshold in thresholds
    ]
    pieces, kept = _summed(reached, tensor, form)
    return [
        limbs.add_up(
            (piece,),
            lambda limb: jnp.sum(limb, axis=kept, dtype=limb.dtype),
            math.prod(piece.shape[axis] for axis in kept),
            limbs_wanted,
        )
        for piece in pieces
    ]


def moments(tensor: Ranked, form: Form) -> tuple[list[jax.Array], np.ndarray]:
    """Computes the moments of each block's patterns in this shard, for first guesses.

    The moments are the number of nonzero patterns, the sum of their distances from
    `usual_octave`, and the sum of the squares of these distances. Distances are in
    octaves, limited to 32. The moments are rounded.

    Args:
      tensor: The tensor whose patterns are summed.
      form: The form of the sums.

    Returns:
      One or more pieces, whose concatenation is float32 `[3, *blocks]`, and the factors
      by which the three rows have yet to be multiplied.
    """
    step = _sampling_step(tensor) if form == "operands" else 1
    arrays = tensor.arrays
    if form == "rows":
        # On GPU, a fusion that also sums cannot write to the buffer that it reads, so
        # the new momentum would need a second buffer. On TPU it can, and saves a read.
        arrays = lax.optimization_barrier(arrays)
    patterns = tensor.patterns(*arrays)
    if step > 1:
        patterns = patterns[_every(step, tensor)]
    above = patterns > 0
    finest = max(tensor.octave // _PARTS_OF_OCTAVE, 1)
    distances = (patterns >> (finest.bit_length() - 1)).astype(np.int32)
    distances -= np.int32(usual_octave(tensor) * _PARTS_OF_OCTAVE)
    distances = jnp.where(above, jnp.clip(distances, -_FARTHEST, _FARTHEST), 0)
    terms = [above.astype(np.int32), distances, distances * distances]
    if form == "operands":
        # The CPU adds integers four times as fast as floats, whose order of summation
        # is fixed.
        length = tensor.shape[tensor.inner_axes[-1]] if tensor.inner_axes else 1
        largest = (1, _FARTHEST, _FARTHEST**2)
        shifts = [max((most * length).bit_length() - 31, 0) for most in largest]
        terms = [term >> shift for term, shift in zip(terms, shifts, strict=True)]
    else:
        shifts = [0] * 3
        terms = [term.astype(np.float32) for term in terms]
    pieces, kept = _summed(terms, tensor, form)
    scales = step * np.exp2(shifts) / _PARTS_OF_OCTAVE ** np.arange(3)
    sums = [jnp.sum(piece.astype(np.float32), axis=kept) for piece in pieces]
    return sums, scales.astype(np.float32)


def usual_octave(tensor: Ranked) -> float:
    """Returns the octave of patterns typical of momenta: that of 2**-20 in float32."""
    # Indices of tied coordinates are ranked too. They have no octaves, and their
    # moments are not used.
    return 0.84 * 2 ** (tensor.bits - 1) / tensor.octave if tensor.octave else 0.0


def _sampling_step(tensor: Ranked) -> int:
    """Returns the step between the slices of a tensor that its moments are taken of.

    Only for one device: on several, a sample would be distributed unevenly.
    """
    # Tens of thousands of coordinates in sixteen slices suffice for mean and deviation.
    inner = tensor.inner_axes
    slices = tensor.shape[inner[0]] if inner else 1
    return max(1, min(64, slices // 16, tensor.block_size // 2**16))


def _every(step: int, tensor: Ranked) -> tuple[slice, ...]:
    """Returns the index of every `step`-th slice along the first inner axis."""
    return tuple(
        slice(None, None, step if axis == tensor.inner_axes[0] else None)
        for axis in range(len(tensor.shape))
    )


def _summed(
    terms: Sequence[jax.Array], tensor: Ranked, form: Form
) -> tuple[list[jax.Array], tuple[int, ...]]:
    """Sums the terms over the inner axes, except those left for a second sum.

    Returns:
      The sums in one or more pieces, whose concatenation along their leading axis has
      one sum for each term, and the axes of the pieces that are left to be summed.
    """
    inner = tensor.inner_axes
    if form == "operands":
        # The compiler rewrites a plain sum over more than 32 elements so that the
        # result of the comparison is stored. A reduction of several operands is not
        # rewritten, and reads the tensor once for all of them.
        zeros = tuple(np.zeros((), term.dtype) for term in terms)
        sums = lax.reduce(tuple(terms), zeros, _add_all, inner[-1:])
        return [jnp.stack(sums)], tuple(axis + 1 for axis in inner[:-1])
    kept = _axes_to_keep(tensor, form)
    at_once = tuple(axis for axis in inner if axis not in kept)
    sums = [jnp.sum(term, axis=at_once, dtype=term.dtype)[None] for term in terms]
    if form == "rows":
        sums = [jnp.concatenate(sums)]
    before = [sum(summed < axis for summed in at_once) for axis in kept]
    return sums, tuple(a - b + 1 for a, b in zip(kept, before, strict=True))


def _add_all(
    a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _axes_to_keep(tensor: Ranked, form: Form) -> tuple[int, ...]:
    """Returns the inner axes to leave for a second sum, so that no limb overflows.

    Except in the form "rows", they are as few and as short as possible, since devices
    exchange the sums along the axes that are left.
    """

    def fits(axes: Sequence[int]) -> bool:
        return math.prod(tensor.shape[i] for i in axes) < 2**32

    inner = tensor.inner_axes
    if form == "rows" and fits(inner[:-1]) and fits(inner[-1:]):
        return inner[:-1]
    kept: list[int] = []
    for axis in sorted(inner, key=lambda i: -tensor.shape[i]):
        if fits([i for i in inner if i not in kept]):
            break
        kept.append(axis)
    return tuple(sorted(kept))
