"""The covariance of the inputs that a parameter is multiplied with."""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputCovariance:
    r"""The uncentered covariance of the inputs that a parameter is multiplied with.

    For a kernel of shape ``[n, out]`` and inputs `x` of shape ``[..., n]``, it is
    :math:`E[x x^T]`. The class is a pytree with one leaf, `matrix`.

    Args:
      matrix: An array of shape ``[*batch, n, n]``, where ``batch`` are the lengths of
        `batch_axes` and ``n`` is the product of the lengths of `axes`.
      axes: The axes of the parameter that are contracted, ascending. The indices of
        `matrix` follow them in row-major order.
      batch_axes: The axes of the parameter, ascending, whose indices have separate
        covariances: those of stacked layers, of experts, or of heads.
      source: The path of the first of all parameters that are multiplied with the same
        input, and whose matrices are therefore equal. In a part of a larger tree, it
        is relative to the part.
      sharding: The sharding of the parameter over a mesh with Auto axes. It
        determines how updates are divided among devices. None if it is not known, or
        for one device. To train on another mesh, replace it and move `matrix` there.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> x = jnp.array([[1., 0.], [1., 2.]])
      >>> covariance = mofo_jax.InputCovariance(x.T @ x / 2, axes=(0,))
      >>> print(covariance.matrix)
      [[1. 1.]
       [1. 2.]]

    Source: the factor of the inputs in Martens and Grosse, `K-FAC
    <https://arxiv.org/abs/1503.05671>`_, 2015.
    """

    matrix: Any
    axes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    batch_axes: tuple[int, ...] = dataclasses.field(
        default=(), metadata={"static": True}
    )
    source: str = dataclasses.field(default="", metadata={"static": True})
    sharding: NamedSharding | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
