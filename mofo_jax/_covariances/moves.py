"""Weights of positions that are moved, such as those of tokens sorted by expert."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from mofo_jax._covariances import pieces, positions, weighting
from mofo_jax._covariances.evaluation import Context, Step, evaluate
from mofo_jax._covariances.pieces import Axes, Piece
from mofo_jax._covariances.scope import Scope, Trait


def is_move(equation: Any, axes: Axes) -> bool:
    """Returns whether an equation moves positions of its first operand.

    Args:
      equation: The equation.
      axes: The axes of the operand.
    """
    params = equation.params
    if equation.primitive.name == "gather":
        moving = _gathered(equation)
        if any(params["slice_sizes"][axis] > 1 for axis in moving):
            return False
    elif equation.primitive.name == "pad":
        moving = [i for i, edge in enumerate(params["padding_config"]) if any(edge)]
    else:
        return False
    return positions.related([axes[axis] for axis in moving])


@dataclasses.dataclass(frozen=True)
class _Move:
    """Records the weights of positions that an equation moves."""

    axes: Axes

    def __call__(
        self, equation: Any, operands: list[Any], context: Context
    ) -> list[Any]:
        weights = context.all_weights
        assert weights is not None
        context.moved.append(_moved(equation, weights, self.axes, operands[1]))
        return evaluate(equation, operands, context)


def follow(
    equation: Any, axes: Axes, trait: Trait, scope: Scope
) -> tuple[Step | None, Trait]:
    """Returns the step of an equation that moves positions, and its result's trait."""
    shapes = scope.all_weights
    operand, other = (atom.aval for atom in equation.invars)
    # A gather with an explicit sharding is computed within automatic axes, in which the
    # weights cannot be used.
    inside = operand.sharding.mesh.axis_types, AxisType.Auto
    around = jax.sharding.get_abstract_mesh().axis_types, AxisType.Explicit
    mixed = all(kind in kinds for kinds, kind in (inside, around))
    if mixed or not weighting.followed(axes, shapes):
        return None, trait
    step = None
    if trait.number not in scope.moved:
        step = _Move(axes)
        moved = jax.eval_shape(
            lambda weights, other: _moved(equation, weights, axes, other),
            [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
            # Without its mesh, which may be that of a `shard_map`.
            jax.ShapeDtypeStruct(other.shape, other.dtype),
        )
        scope.moved[trait.number] = moved.shape
    own = 1 + list(scope.moved).index(trait.number)
    *before, sizes = scope.all_weights[: own + 1]
    first = sum(map(len, before))
    known = [first + i if size > 1 else None for i, size in enumerate(sizes)]
    along = pieces.axes_of(known, equation.outvars[0].aval.shape)
    return step, trait._replace(positions=along)


def _gathered(equation: Any) -> list[int]:
    """Returns the axes of a gather's operand that are indexed and not taken whole."""
    params, shape = equation.params, equation.invars[0].aval.shape
    indexed = params["dimension_numbers"].start_index_map
    return [axis for axis in indexed if params["slice_sizes"][axis] != shape[axis]]


def forget(axes: Axes, rank: int) -> Axes:
    """Returns the axes with moved positions lost.

    Args:
      axes: The axes of an array.
      rank: The number of axes of the batch's weights.
    """

    def known(digits: tuple[Piece, ...]) -> bool:
        return all(digit.axis is None or digit.axis < rank for digit in digits)

    moved = [i for i, digits in enumerate(axes) if not known(digits)]
    return positions.lose(axes, moved)


def _moved(
    equation: Any, weights: Sequence[jax.Array], axes: Axes, other: jax.Array
) -> jax.Array:
    """Returns the weights of the coordinates of the result of a move.

    Args:
      equation: The equation.
      weights: As for `weighting.expand`.
      axes: The axes of the first operand.
      other: The second operand, the indices of a gather.

    Returns:
      An array that broadcasts to the result. The weight is 0 where the result has no
      coordinate of the operand.
    """
    own, params = weighting.expand(weights, axes), equation.params
    shape = equation.invars[0].aval.shape
    if equation.primitive.name == "pad":
        edges = zip(params["padding_config"], own.shape, shape, strict=True)
        kept = [edge if n == m else (0, 0, 0) for edge, n, m in edges]
        return lax.pad(own, jnp.zeros((), own.dtype), kept)
    numbers = params["dimension_numbers"]
    moving = {*_gathered(equation), *numbers.operand_batching_dims}
    sizes = [n if i in moving else own.shape[i] for i, n in enumerate(shape)]
    taken = [
        1 if i in moving or size == 1 else params["slice_sizes"][i]
        for i, size in enumerate(sizes)
    ]
    own = jnp.broadcast_to(own, sizes)
    return lax.gather(own, other, numbers, taken, mode=params["mode"], fill_value=0)
