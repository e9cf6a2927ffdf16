"""Computation of the covariances of the inputs of products."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mofo_jax._covariances import shardings, weighting
from mofo_jax._covariances.pieces import Axes

# The sum of the outer products of some inputs, of shape `[*lead, n, n]`, and the number
# of inputs for each index, of shape `[*lead, n]`.
Sums = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Dot:
    """The covariance along axes of the input, separately for indices of batch axes.

    Attributes:
      contracted: The axes along which it is computed.
      batch: The axes whose indices have separate covariances.
      positions: How the input's axes correspond to those of the weights.
    """

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    positions: Axes

    def __call__(
        self, operands: Sequence[jax.Array], weights: Sequence[jax.Array] | None
    ) -> Sums:
        """Returns the covariance of the first operand."""
        (x,) = operands
        names = list(range(x.ndim))
        others = [n + x.ndim if n in self.contracted else n for n in names]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        weighted = x
        summed = [
            size
            for axis, size in enumerate(x.shape)
            if axis not in (*self.contracted, *self.batch)
        ]
        lead = [x.shape[axis] for axis in self.batch]
        count = jnp.full(lead, math.prod(summed), wide)
        if weights is not None:
            weight = weighting.expand(weights, self.positions).astype(wide)
            x = _counted(x, weight)
            weighted = x.astype(wide) * weight
            shape = [1 if i in self.contracted else n for i, n in enumerate(x.shape)]
            count = jnp.sum(
                jnp.moveaxis(
                    jnp.broadcast_to(weight, shape), self.batch, range(len(self.batch))
                ),
                axis=range(len(self.batch), x.ndim),
            )
        x, weighted = _same_dtype(x, weighted)
        x, weighted = (shardings.whole_along(y, self.contracted) for y in (x, weighted))
        result = [*self.batch, *self.contracted]
        matrix = jnp.einsum(
            weighted,
            names,
            x,
            others,
            [*result, *(axis + x.ndim for axis in self.contracted)],
            precision=lax.Precision.HIGHEST,
            preferred_element_type=wide,
            out_sharding=shardings.replicated(x),
        )
        length = math.prod(x.shape[axis] for axis in self.contracted)
        return _sums(matrix.reshape(*lead, length, length), count)


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The covariance of an input that is sharded over devices.

    Attributes:
      axes: The sharded axes of the input, each with its mesh axes.
      dot: The method for the whole input.
    """

    axes: tuple[tuple[int, tuple[str, ...]], ...]
    dot: Dot

    @property
    def positions(self) -> Axes:
        """How the input's axes correspond to those of the weights."""
        return self.dot.positions

    def __call__(
        self, operands: Sequence[jax.Array], weights: Sequence[jax.Array] | None
    ) -> Sums:
        """Returns the covariance of the first operand."""
        (x,) = operands
        for axis, names in self.axes:
            x = lax.all_gather(x, names, axis=axis, tiled=True)
        return self.dot([x], weights)


@dataclasses.dataclass(frozen=True)
class Patches:
    """The covariance of the patches of the input that a convolution multiplies.

    Attributes:
      filter_shape: The spatial shape of the kernel.
      options: The convolution's options.
      dot: The method for the patches, whose leading axes are the input channels and the
        filter.
    """

    filter_shape: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    dot: Dot

    @property
    def positions(self) -> Axes:
        """How the patches' axes correspond to those of the weights."""
        return self.dot.positions

    def __call__(
        self, operands: Sequence[jax.Array], weights: Sequence[jax.Array] | None
    ) -> Sums:
        """Returns the covariance of the patches of the first operand."""
        options = dict(self.options)
        patches = lax.conv_general_dilated_patches(
            operands[0],
            self.filter_shape,
            precision=lax.Precision.HIGHEST,
            **options,
        )
        patches = jnp.moveaxis(patches, options["dimension_numbers"].out_spec[1], 0)
        shape = (-1, *self.filter_shape, *patches.shape[1:])
        return self.dot([patches.reshape(shape)], weights)


@dataclasses.dataclass(frozen=True)
class Groups:
    """The covariances of groups of rows, whose sizes are the second operand.

    Attributes:
      positions: How the axes of the rows correspond to those of the weights.
    """

    positions: Axes

    def __call__(
        self, operands: Sequence[jax.Array], weights: Sequence[jax.Array] | None
    ) -> Sums:
        """Returns one covariance for each group."""
        x, sizes = operands
        wide = jnp.promote_types(x.dtype, jnp.float32)
        numbers = lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=(((0,), (0,)), ((), ())),
            lhs_ragged_dimensions=[0],
            rhs_group_dimensions=[],
        )

        def outer(x: jax.Array, y: jax.Array) -> jax.Array:
            return lax.ragged_dot_general(
                *_same_dtype(x, y),
                sizes,
                numbers,
                precision=lax.Precision.HIGHEST,
                preferred_element_type=wide,
            )

        if weights is None:
            return _sums(outer(x, x), sizes.astype(wide))
        weight = weighting.expand(weights, self.positions).astype(wide)
        weight = jnp.broadcast_to(weight, (len(x), 1))
        count = outer(weight, jnp.ones_like(weight))
        x = _counted(x, weight)
        return _sums(outer(x.astype(wide) * weight, x), count[:, 0, 0])


def _sums(matrix: jax.Array, count: jax.Array) -> Sums:
    """Returns the sums of inputs that all have every index."""
    return matrix, jnp.broadcast_to(count[..., None], matrix.shape[:-1])


def _counted(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns inputs that are zero, rather than NaN, where the weight is zero."""
    return jnp.where(weight > 0, x, jnp.zeros((), x.dtype))


def _same_dtype(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two factors in a dtype that supports their product."""
    dtype = jnp.promote_types(x.dtype, y.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.dtype(jnp.float32)
    return x.astype(dtype), y.astype(dtype)
