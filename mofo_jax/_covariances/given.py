"""Covariances given by the user: their paths and their validation."""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from mofo_jax._covariances import shardings
from mofo_jax._covariances.covariance import InputCovariance
from mofo_jax._options.path_rules import named_leaves, place


def by_path(covariances: Any) -> dict[str, InputCovariance | None]:
    """Returns the covariance of each parameter by path.

    Raises:
      TypeError: If a leaf is neither an `InputCovariance` nor None.
      ValueError: If there is no covariance, or two of one path.
    """

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, InputCovariance)

    found = {}
    for path, leaf in named_leaves(covariances, is_leaf):
        if path in found:
            raise ValueError(
                "`covariances` must have different paths for all parameters, got two "
                f"of {place(path)}"
            )
        found[path] = leaf
        if not is_leaf(leaf):
            raise TypeError(
                f"`covariances` for {place(path)} must be an "
                f"InputCovariance or None, got {type(leaf).__name__}"
            )
    if all(covariance is None for covariance in found.values()):
        raise ValueError("`covariances` must hold an InputCovariance, got none")
    return found


def check_matrix(name: str, covariance: InputCovariance) -> None:
    """Raises `TypeError` or `ValueError` for an invalid covariance."""
    matrix, batch = covariance.matrix, len(covariance.batch_axes)
    every = (*covariance.batch_axes, *covariance.axes)
    if len(set(every)) < len(every) or list(every[:batch]) != sorted(every[:batch]):
        raise ValueError(
            f"`covariances` for {name} must have different axes, those of the batch "
            f"ascending, got {covariance.axes} and {covariance.batch_axes}"
        )
    if not hasattr(matrix, "dtype"):
        raise TypeError(
            f"`covariances` for {name} must be arrays, got {type(matrix).__name__}"
        )
    shape = jnp.shape(matrix)
    if len(shape) != batch + 2 or shape[-1] != shape[-2]:
        raise ValueError(
            f"`covariances` for {name} must have square matrices with {batch} leading "
            f"axes, got shape {shape}"
        )
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise ValueError(
            f"`covariances` for {name} must have a floating-point dtype, got "
            f"{matrix.dtype}"
        )
    if isinstance(matrix, jax.ShapeDtypeStruct):
        return
    try:
        # Checked immediately, even if the transformation is made in a traced function.
        with jax.ensure_compile_time_eval():
            finite, symmetric, positive = map(bool, _properties(matrix))
    except jax.errors.ConcretizationTypeError:
        return
    for holds, what in (
        (finite, "be finite"),
        (symmetric, "be symmetric"),
        (positive, "have a nonnegative diagonal"),
    ):
        if not holds:
            raise ValueError(f"`covariances` for {name} must {what}")


@jax.jit
def _properties(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    matrix = shardings.whole_along(matrix, range(matrix.ndim))
    largest = jnp.max(jnp.abs(matrix), initial=0.0)
    difference = jnp.abs(matrix - jnp.swapaxes(matrix, -1, -2))
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    return (
        jnp.all(jnp.isfinite(matrix)),
        jnp.max(difference, initial=0.0) <= 1e-3 * largest,
        jnp.all(diagonal >= 0),
    )


def names(kept: dict[str, InputCovariance | None]) -> dict[str, str]:
    """Returns the name of each parameter's matrix in the state.

    It is the path of the first parameter with the same input, whose matrix is used for
    all of them. In a part of a larger tree, a `source` is relative to the part.

    Raises:
      ValueError: If parameters with the same `source` have different matrices.
    """
    result: dict[str, str] = {}
    for path, covariance in kept.items():
        if covariance is None:
            continue
        name, parents = covariance.source, path.split("/")
        for depth in reversed(range(len(parents))):
            holder = "/".join([*parents[:depth], covariance.source])
            if holder in kept and _may_share(kept[holder], covariance):
                name = holder
                break
        result[path] = name or path or "matrix"
    first: dict[str, str] = {}
    for path, name in result.items():
        other = first.setdefault(name, path)
        if not _equal(kept[path], kept[other]):
            raise ValueError(
                f"`covariances` for {place(path)} and {place(other)} must be equal, "
                "since they have the same `source`; change one of the two"
            )
    return result


def _may_share(holder: InputCovariance | None, covariance: InputCovariance) -> bool:
    return holder is None or holder.source == covariance.source


def _equal(one: InputCovariance | None, other: InputCovariance | None) -> bool:
    """Returns whether two matrices are equal, or may be."""
    assert one is not None and other is not None
    if one.matrix is other.matrix:
        return True
    if jnp.shape(one.matrix) != jnp.shape(other.matrix):
        return False
    if any(isinstance(c.matrix, jax.ShapeDtypeStruct) for c in (one, other)):
        return True
    try:
        with jax.ensure_compile_time_eval():
            return bool(_same(one.matrix, other.matrix))
    except jax.errors.ConcretizationTypeError:
        return True


@jax.jit
def _same(one: jax.Array, other: jax.Array) -> jax.Array:
    one, other = (shardings.whole_along(x, range(x.ndim)) for x in (one, other))
    return jnp.all(one == other)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries of values given by path.

    Raises:
      ValueError: If a path continues another.
    """
    result: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise ValueError(
                "`covariances` must not have a parameter whose path continues that of "
                f"another one, got {place(path)}"
            )
        node[last] = value
    return result


def at(nested: dict[str, Any], path: str) -> Any:
    """Returns the value at a path of nested dictionaries."""
    return functools.reduce(operator.getitem, path.split("/"), nested)


def check_tree(kept: dict[str, InputCovariance | None], tree: Any) -> None:
    """Raises `ValueError` unless covariances fit a tree of parameters."""
    for name, leaf in named_leaves(tree):
        if name not in kept:
            raise ValueError(
                f"`covariances` must have the structure of the parameters, got nothing "
                f"for {place(name)}"
            )
        covariance = kept[name]
        if covariance is None:
            continue
        shape, matrix = jnp.shape(leaf), jnp.shape(covariance.matrix)
        axes, batch_axes = covariance.axes, covariance.batch_axes
        fits = max((-1, *axes, *batch_axes)) < len(shape) and matrix == (
            *(shape[axis] for axis in batch_axes),
            *[math.prod(shape[axis] for axis in axes)] * 2,
        )
        if not fits:
            raise ValueError(
                f"`covariances` for {place(name)} of shape {shape} must be matrices "
                f"along its axes {axes}, for each index of {batch_axes}, got shape "
                f"{matrix}"
            )
