"""The primitives that multiply parameters, and the covariances of their inputs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from mofo_jax._covariances import pieces, propagation
from mofo_jax._covariances.methods import Dot, Gathered, Groups, Patches
from mofo_jax._covariances.pieces import Axes
from mofo_jax._covariances.views import UnfitError, View, sharded


class Operands(NamedTuple):
    """The types of a primitive's operands.

    Attributes:
      shapes: The operands' shapes.
      dtypes: The operands' dtypes.
      positions: How the operands' axes correspond to those of the weights.
      result: The shape of the primitive's result.
    """

    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[Any]
    positions: Sequence[Axes]
    result: tuple[int, ...]


class Product(NamedTuple):
    """A product of a kernel, and how the covariance of its input is computed.

    Attributes:
      operands: The operands for the computation, starting with the input.
      contracted: The kernel's contracted axes, in the order of covariance indices.
      batch: The kernel's axes that are leading axes of the covariance.
      lead: The sizes of the covariance's leading axes.
      length: The length of its last two axes.
      method: The method of computation.
    """

    operands: tuple[int, ...]
    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    lead: tuple[int, ...]
    length: int
    method: Any


def find(
    name: str, params: Mapping[str, Any], view: View, kernel: int, operands: Operands
) -> Product:
    """Returns the product in which an operand is the kernel.

    Args:
      name: The name of a primitive in `PRIMITIVES`.
      params: The primitive's parameters.
      view: The kernel's view.
      kernel: The number of the operand that is the kernel.
      operands: The types of the operands.

    Raises:
      UnfitError: If the covariance of its input is not supported.
    """
    product = PRIMITIVES[name](params, view, kernel, operands)
    dtype = operands.dtypes[product.operands[0]]
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise UnfitError("its input is complex")
    try:
        jnp.promote_types(dtype, jnp.float32)
    except ValueError as error:  # JAX has no wider type.
        raise UnfitError(f"its input has the dtype {dtype}") from error
    return product


def gather_input(product: Product, view: View, sizes: Mapping[str, int]) -> Product:
    """Returns a product whose covariance is computed after gathering the input.

    Args:
      product: The product of each device.
      view: The kernel's view.
      sizes: The sizes of the mesh axes.

    Raises:
      UnfitError: If an axis is sharded that cannot be gathered.
    """
    divided = [(place, sharded(view, a)) for place, a in enumerate(product.contracted)]
    divided = [(place, names) for place, names in divided if names]
    if not divided:
        return product
    if not isinstance(product.method, Dot):
        raise UnfitError("its product contracts a part of an axis on each device")
    inputs = product.method.contracted
    gathered = tuple((inputs[place], names) for place, names in divided)
    shards = math.prod(sizes[name] for _, names in gathered for name in names)
    method = Gathered(gathered, product.method)
    return product._replace(length=product.length * shards, method=method)


def _dot_general(
    params: Mapping[str, Any], view: View, kernel: int, operands: Operands
) -> Product:
    contracted, batch = params["dimension_numbers"]
    other = 1 - kernel
    # A kernel that is repeated along a batch axis is a single kernel.
    pairs = [
        (own, its)
        for own, its in zip(batch[kernel], batch[other], strict=True)
        if any(digit.axis is not None for digit in view.axes[own])
    ]
    shape, summed = operands.shapes[other], tuple(contracted[other])
    apart = tuple(its for _, its in pairs)
    return Product(
        (other,),
        tuple(contracted[kernel]),
        tuple(own for own, _ in pairs),
        tuple(shape[axis] for axis in apart),
        math.prod(shape[axis] for axis in summed),
        Dot(summed, apart, _positions(operands, other, summed)),
    )


def _positions(operands: Operands, number: int, contracted: Sequence[int]) -> Axes:
    """Returns the axes of an input, of which contracted ones are not positions."""
    axes = operands.positions[number]
    none = pieces.unrelated([pieces.length(axis) for axis in axes])
    return tuple(none[i] if i in contracted else axis for i, axis in enumerate(axes))


def _convolution(
    params: Mapping[str, Any], view: View, kernel: int, operands: Operands
) -> Product:
    numbers = params["dimension_numbers"]
    if kernel != 1:
        raise UnfitError("it is the input of a convolution")
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        raise UnfitError("it is the kernel of a grouped convolution")
    _, channels, *spatial = numbers.rhs_spec
    filter_shape = tuple(operands.shapes[1][axis] for axis in spatial)
    lengths = (operands.shapes[0][numbers.lhs_spec[1]], *filter_shape)
    # The patches are along the channels' axis, which is moved to the front.
    patches = propagation.of_convolution(
        params, operands.positions[0], operands.shapes[0], operands.result
    )
    patches = pieces.without(patches, [numbers.out_spec[1]])
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    return Product(
        (0,),
        (channels, *spatial),
        (),
        (),
        math.prod(lengths),
        Patches(
            filter_shape,
            (*((n, tuple(params[n])) for n in names), ("dimension_numbers", numbers)),
            Dot(tuple(range(len(lengths))), (), pieces.unrelated(lengths) + patches),
        ),
    )


def _ragged_dot(
    params: Mapping[str, Any], view: View, kernel: int, operands: Operands
) -> Product:
    numbers = params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    plain = (
        kernel == 1
        and tuple(map(tuple, contracted)) == ((1,), (1,))
        and not any(batch)
        and tuple(numbers.lhs_ragged_dimensions) == (0,)
        and tuple(numbers.rhs_group_dimensions) == (0,)
        and params["group_offset"] is None
    )
    if not plain:
        raise UnfitError("its ragged product has an unsupported form")
    groups, length, _ = operands.shapes[1]
    method = Groups(_positions(operands, 0, (1,)))
    return Product((0, 2), (1,), (0,), (groups,), length, method)


PRIMITIVES = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
}
