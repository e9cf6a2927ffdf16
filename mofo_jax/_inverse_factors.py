"""The part of a step that a preconditioner removes: a matrix, blocks or low rank."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from mofo_jax._covariances import shardings
from mofo_jax._covariances.covariance import InputCovariance


class LowRank(NamedTuple):
    """The sum of a diagonal matrix and ``basis @ basis.T``, or blocks of this form."""

    diagonal: jax.Array  # [*batch, n]
    basis: jax.Array  # [*batch, n, rank]


Factor = jax.Array | LowRank


def compute(
    matrix: jax.Array,
    damping: jax.typing.ArrayLike,
    dtype: Any,
    block_size: int | None,
    rank: int | None,
) -> Factor:
    r"""Returns :math:`I - (I + A / (c \bar\lambda))^{-1}` for each matrix of a stack.

    Args:
      matrix: :math:`A`, of shape ``[*batch, n, n]``; :math:`\bar\lambda` is its mean
        eigenvalue.
      damping: :math:`c`.
      dtype: The dtype of the result.
      block_size: The largest length of the diagonal blocks of :math:`A` that are used;
        None for the whole matrix.
      rank: The number of directions in addition to the diagonal; None for all.

    Returns:
      An array of shape ``[*batch, n, n]``, or a `LowRank` if it is faster to apply. The
      rows of diagonal blocks of length m follow each other, ``[*batch, blocks * m,
      m]``, so that whatever number of devices divides the parameter's axis divides
      them.
    """
    if matrix.ndim > 2:
        # One after another, to save memory.
        options = damping, dtype, block_size, rank
        return lax.map(lambda one: compute(one, *options), matrix)
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    n = matrix.shape[-1]
    mean = jnp.trace(matrix) / n
    # If the inputs were always zero, nothing is removed.
    scaled = matrix / jnp.where(mean > 0, damping * mean, jnp.inf)
    count, length = _blocks(n, block_size)
    if count == 1:
        return _remove_from(scaled, dtype, rank)
    function = functools.partial(_remove_from, dtype=dtype, rank=rank)
    parts = jax.vmap(function)(_diagonal_blocks(scaled, count, length))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def _blocks(n: int, block_size: int | None) -> tuple[int, int]:
    """Returns the number of blocks of an axis, and their length.

    The blocks divide the axis evenly if at most twice the least number of blocks
    suffices for that; otherwise the last block exceeds the axis.
    """
    least = math.ceil(n / (block_size or n))
    for count in range(least, 2 * least + 1):
        if n % count == 0:
            return count, n // count
    return least, math.ceil(n / least)


def _diagonal_blocks(matrix: jax.Array, count: int, length: int) -> jax.Array:
    matrix = jnp.pad(matrix, (0, count * length - len(matrix)))
    runs = [slice(i * length, (i + 1) * length) for i in range(count)]
    return jnp.stack([matrix[run, run] for run in runs])


def _remove_from(scaled: jax.Array, dtype: Any, rank: int | None) -> Factor:
    """Returns ``I - inv(I + scaled)``, or an approximation of low rank."""
    if rank is not None and 2 * rank < len(scaled):
        return _low_rank(scaled, rank, dtype)
    return _whole(scaled, dtype)


def _whole(scaled: jax.Array, dtype: Any) -> jax.Array:
    identity = jnp.eye(len(scaled), dtype=scaled.dtype)
    lower = jnp.linalg.cholesky(identity + scaled)
    root = lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
    inverse = jnp.matmul(root.T, root, precision=lax.Precision.HIGHEST)
    return (identity - inverse).astype(dtype)


def _low_rank(scaled: jax.Array, rank: int, dtype: Any) -> LowRank:
    """Returns ``I - inv(I + D + U U.T)``, with the `rank` largest directions in U.

    ``D + U U.T`` has the diagonal of `scaled`. With ``E = I + D`` it is
    ``I - inv(E) + V V.T`` for ``V = inv(E) U inv(L).T`` and
    ``L L.T = I + U.T inv(E) U``.
    """
    values, vectors = jnp.linalg.eigh(scaled)
    u = vectors[:, -rank:] * jnp.sqrt(jnp.maximum(values[None, -rank:], 0))
    rest = jnp.maximum(jnp.diagonal(scaled) - jnp.sum(u * u, axis=1), 0)
    v = u / (1 + rest)[:, None]
    inside = jnp.eye(rank, dtype=scaled.dtype) + jnp.matmul(
        u.T, v, precision=lax.Precision.HIGHEST
    )
    basis = lax.linalg.triangular_solve(
        jnp.linalg.cholesky(inside), v, left_side=False, lower=True, transpose_a=True
    )
    # In float32 at least: the diagonal is small, and its rounding would be visible.
    diagonal = (rest / (1 + rest)).astype(jnp.promote_types(dtype, jnp.float32))
    return LowRank(diagonal, basis.astype(dtype))


def apply(
    factor: Factor,
    x: jax.Array,
    axes: tuple[int, ...],
    batch_axes: tuple[int, ...],
    block_size: int | None,
) -> jax.Array:
    """Returns the part of an array that is removed along some of its axes.

    Args:
      factor: The result of `compute`.
      x: The array, in float32 or wider.
      axes: The axes of the factor's last two, in row-major order.
      batch_axes: The axes whose indices have separate factors, ascending.
      block_size: As for `compute`.
    """
    inside = tuple(axis - sum(b < axis for b in batch_axes) for axis in axes)
    function = functools.partial(_apply_one, inside, block_size)
    for number in reversed(range(len(batch_axes))):
        axis = batch_axes[number] - number
        function = jax.vmap(function, in_axes=(0, axis), out_axes=axis)
    return function(factor, x)


def _apply_one(
    axes: tuple[int, ...], block_size: int | None, factor: Factor, x: jax.Array
) -> jax.Array:
    front = range(len(axes))
    moved = jnp.moveaxis(x, axes, front)
    columns = moved.reshape(-1, *moved.shape[len(axes) :])
    n = columns.shape[0]
    count, length = _blocks(n, block_size)
    if count == 1:
        removed = _remove(factor, columns)
    else:
        edges = [(0, count * length - n)] + [(0, 0)] * (columns.ndim - 1)
        parts = factor, jnp.pad(columns, edges)
        parts = jax.tree.map(lambda x: x.reshape(count, length, *x.shape[1:]), parts)
        removed = jax.vmap(_remove)(*parts)
        removed = removed.reshape(-1, *removed.shape[2:])[:n]
    return jnp.moveaxis(removed.reshape(moved.shape), front, axes)


def _remove(factor: Factor, x: jax.Array) -> jax.Array:
    """Returns the part that is removed along the first axis."""
    if not isinstance(factor, LowRank):
        return _product(factor, x)
    shares = factor.diagonal.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    along = _product(factor.basis.T, x)
    return shares * x + _product(factor.basis, along)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a product along the first axis of `x`, in the dtype of `x`.

    If the matrix is narrower than float32, but has its range, as bfloat16 has, both
    factors are rounded to its dtype, unless `x` is complex.
    """
    kind = jnp.finfo(matrix.dtype)
    same_range = kind.maxexp == jnp.finfo(jnp.float32).maxexp
    narrow = kind.bits < 32 and same_range and not jnp.iscomplexobj(x)
    return lax.dot_general(
        matrix if narrow else matrix.astype(x.dtype),
        x.astype(matrix.dtype) if narrow else x,
        (((1,), (0,)), ((), ())),
        precision=None if narrow else lax.Precision.HIGHEST,
        preferred_element_type=x.dtype,
    )


def batch_sharding(x: jax.Array, covariance: InputCovariance) -> NamedSharding | None:
    """Returns the sharding of an update's batch axes.

    Args:
      x: The update of a parameter.
      covariance: Of the parameter.

    Returns:
      A sharding of as many axes as there are batch axes; None if it is not known.
    """
    sharding = shardings.known(x, covariance.sharding)
    if sharding is None:
        return None
    return shardings.along(sharding, covariance.batch_axes, len(covariance.batch_axes))


def subtract(
    factor: Factor,
    xs: Sequence[jax.Array],
    covariances: Sequence[InputCovariance],
    block_size: int | None,
) -> list[jax.Array]:
    """Returns updates of parameters with the same input, minus what is removed of them.

    The matrices of a stack are applied in a loop, so that each device holds no more
    than one whole matrix at a time, which is gathered once for all parameters.

    Args:
      factor: As `compute` returns it.
      xs: The updates, in float32 or wider, with the same `batch_sharding`.
      covariances: Of the parameters. What they say of axes and of the sharding is used.
      block_size: As for `compute`.
    """
    first, place = covariances[0], batch_sharding(xs[0], covariances[0])
    looped = {
        number: xs[0].shape[axis]
        for number, axis in enumerate(first.batch_axes)
        if place is None or place.spec[number] is None
    }

    def less(factor: Factor, xs: Sequence[jax.Array]) -> list[jax.Array]:
        if place is not None:
            factor = _gathered(factor, first, place)
        pairs = zip(xs, covariances, strict=True)
        return [_less(factor, x, covariance, block_size) for x, covariance in pairs]

    if math.prod(looped.values()) == 1:
        return less(factor, xs)

    def one(index: jax.Array, xs: list[jax.Array]) -> list[jax.Array]:
        indices = jnp.unravel_index(index, tuple(looped.values()))
        own = dict(zip(looped, indices, strict=True))
        places = [{c.batch_axes[n]: i for n, i in own.items()} for c in covariances]
        parts = [_part(x, place) for x, place in zip(xs, places, strict=True)]
        parts = less(jax.tree.map(lambda f: _part(f, own), factor), parts)
        return [
            lax.dynamic_update_slice(x, part, [place.get(i, 0) for i in range(x.ndim)])
            for x, part, place in zip(xs, parts, places, strict=True)
        ]

    return lax.fori_loop(0, math.prod(looped.values()), one, list(xs))


def _gathered(
    factor: Factor, covariance: InputCovariance, place: NamedSharding
) -> Factor:
    """Returns a factor, or a part of it, that is sharded along its batch axes only."""
    stored, batch = shardings.of(covariance.matrix), range(len(covariance.batch_axes))

    def gathered(f: jax.Array) -> jax.Array:
        own = shardings.divide(stored, len(batch), f.shape)
        whole = shardings.along(place, batch, f.ndim)
        return shardings.constrain(shardings.constrain(f, own), whole)

    return jax.tree.map(gathered, factor)


def _part(x: jax.Array, place: Mapping[int, Any]) -> jax.Array:
    """Returns the part at one index along some axes, which keep length 1."""
    starts = [place.get(axis, 0) for axis in range(x.ndim)]
    sizes = [1 if axis in place else size for axis, size in enumerate(x.shape)]
    return lax.dynamic_slice(x, starts, sizes)


def _less(
    factor: Factor,
    x: jax.Array,
    covariance: InputCovariance,
    block_size: int | None,
) -> jax.Array:
    """Returns an update, or one matrix of a stack, minus what is removed of it.

    Each device exchanges rows of a sharded update for columns, so that it holds no more
    than its share of the update.
    """
    axes, batch_axes = covariance.axes, covariance.batch_axes
    sharding = shardings.known(x, covariance.sharding)
    if sharding is None:
        return x - apply(factor, x, axes, batch_axes, block_size)
    # All shardings are stated, before and after. Otherwise the compiler gathers the
    # stack in front of the loop, or gathers the update.
    way = [sharding, *shardings.moved_off(sharding, x.shape, axes, batch_axes)]
    moved = functools.reduce(shardings.constrain, way, x)
    removed = apply(factor, moved, axes, batch_axes, block_size)
    return functools.reduce(shardings.constrain, reversed(way), moved - removed)
