"""What a run did: what was selected, whether it lasts, how far the parameters moved.

Functions of trees that a training loop already has, so that no optimizer needs state
for them. They only compare and add up: they may run at every step, inside `jax.jit`,
under any sharding. Counts are exact, however large the tensors.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mofo_jax._dtypes import widen
from mofo_jax._options.path_rules import Kind, PerTensor, path_name, place
from mofo_jax._selection.levels import count_levels
from mofo_jax._selection.patterns import magnitude_patterns

TOTAL = "total"


class Distance(NamedTuple):
    """How far parameters are from where they started.

    Attributes:
      distance: The Euclidean norm of the difference, shape ().
      relative: That divided by the start's own norm, shape ().
    """

    distance: jax.Array
    relative: jax.Array


def selected_share(updates: optax.Updates) -> Any:
    r"""Measures for each tensor the share of its coordinates that an update moves.

    .. math::

      |\{i : u_i \ne 0\}| / n

    Args:
      updates: What `update` returned, or boolean masks.

    Returns:
      A float32 scalar for each tensor, in the tree's structure; 0 for an empty one.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> optimizer = mofo_jax.mofo(1e-3, update_fraction=0.25)
      >>> params = {"bias": jnp.zeros(4), "kernel": jnp.zeros((2, 4))}
      >>> grads = {"bias": jnp.arange(4.), "kernel": jnp.ones((2, 4))}
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> {name: float(x) for name, x in mofo_jax.selected_share(updates).items()}
      {'bias': 0.25, 'kernel': 1.0}

    Source: ours. The kernel's equal momenta are all selected, as `ties="all"` says.
    """

    def share(update: Any) -> jax.Array:
        moves, _ = count_levels(_nonzero, update)
        return _ratio(moves, float(np.size(update)))

    return jax.tree.map(share, updates)


def mask_overlap(updates: optax.Updates, previous_updates: optax.Updates) -> Any:
    r"""Measures for each tensor how much of what moves now moved at the last step too.

    .. math::

      |\{i : u_i \ne 0, u'_i \ne 0\}| / |\{i : u_i \ne 0\}|

    If each step's selection of a fraction :math:`\alpha` were drawn anew, this would be
    :math:`\alpha`. Of the step before only this is needed: where its updates were not
    zero. A loop may keep the booleans ``update != 0``, a byte a coordinate.

    Args:
      updates: What `update` returned, or boolean masks.
      previous_updates: The same of the step before; leaves are paired in order.

    Returns:
      A float32 scalar for each tensor, in the structure of `updates`; 0 where nothing
      moves now.

    Raises:
      ValueError: If the two have different numbers of leaves, or leaves of different
        shapes.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> now, before = jnp.array([0., 0.1, -0.2, 0.]), jnp.array([5., 0., -5., 5.])
      >>> print(mofo_jax.mask_overlap(now, before))
      0.5

    Source: ours.
    """
    overlaps = []
    for update, previous in _pairs(updates, "previous_updates", previous_updates):
        moves, again = count_levels(_nonzero_and_before, update, previous)
        overlaps.append(_ratio(again, moves))
    return jax.tree.structure(updates).unflatten(overlaps)


def distance_from_start(
    params: optax.Params, start: optax.Params, rules: PerTensor[str] | None = None
) -> dict[str, Distance]:
    r"""Measures how far parameters are from where they started.

    .. math::

      \|\theta - \theta_0\|_2 \quad\text{and}\quad
      \|\theta - \theta_0\|_2 / \|\theta_0\|_2

    Differences are taken and squares added in float32, or in float64 for such
    parameters.

    Args:
      params: The parameters, floating-point, integer or complex.
      start: The parameters at the start, on the devices or, as NumPy arrays, on the
        host: outside of `jax.jit` one tensor at a time is moved. Leaves are paired in
        order.
      rules: The group that each parameter belongs to, as `PathRules` from its path to
        the group's name, or in another form that options by tensor have. None makes no
        groups.

    Returns:
      A `Distance` for `"total"`, all parameters, and one for each group that has any.
      The relative distance from a start of zeros is 0 or infinite.

    Raises:
      ValueError: If the two trees have different numbers of leaves or leaves of
        different shapes, a parameter has no group, or a group is called `"total"`.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> start = {"attention": jnp.full(4, 3.), "mlp": jnp.full(9, 2.)}
      >>> params = {"attention": jnp.full(4, 3.), "mlp": jnp.full(9, 3.)}
      >>> groups = mofo_jax.PathRules({"attention": "mixing", "mlp": "features"})
      >>> found = mofo_jax.distance_from_start(params, start, groups)
      >>> for name, (distance, relative) in sorted(found.items()):
      ...   print(f"{name}: {distance:.2f}, relative {relative:.2f}")
      features: 3.00, relative 0.50
      mixing: 0.00, relative 0.00
      total: 3.00, relative 0.35

    Source: Chen et al, `MoFO <https://arxiv.org/abs/2407.20999>`_, 2024, which
    explains less forgetting by a smaller distance.
    """
    squares = [_squares(x, old) for x, old in _pairs(params, "start", start)]
    found = {}
    for group, members in _groups(params, rules).items():
        distance, size = (
            jnp.sqrt(sum((squares[i][part] for i in members), jnp.float32(0)))
            for part in (0, 1)
        )
        nothing = (distance == 0) & (size == 0)
        found[group] = Distance(distance, jnp.where(nothing, 0, distance / size))
    return found


def ever_moved_share(
    params: optax.Params, start: optax.Params, rules: PerTensor[str] | None = None
) -> dict[str, jax.Array]:
    """Measures the share of coordinates that are not where they started.

    A coordinate has moved if its bits have changed: a NaN that was there from the start
    has not moved, however small a step has. Only that a zero changed its sign is no
    move, since adding zero may do it. What went and came back has not moved.

    Args:
      params: The parameters.
      start: The parameters at the start, as for `distance_from_start`, in dtypes that
        convert to those of `params` without loss.
      rules: The groups, as for `distance_from_start`.

    Returns:
      A float32 scalar for `"total"`, all parameters, and one for each group that has
      any. Given the parameters after a step and before it, the share that the step
      moved.

    Raises:
      ValueError: As `distance_from_start`.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> start, params = jnp.array([1., 2., 0., 4.]), jnp.array([1., 2.5, -0., 4.])
      >>> print(mofo_jax.ever_moved_share(params, start)["total"])
      0.25

    Source: ours.
    """
    pairs = _pairs(params, "start", start)
    counts = [count_levels(_differs, x, old)[0] for x, old in pairs]
    sizes = [np.size(x) for x, _ in pairs]
    found = {}
    for group, members in _groups(params, rules).items():
        moved = sum((counts[i] for i in members), jnp.float32(0))
        found[group] = _ratio(moved, float(sum(sizes[i] for i in members)))
    return found


def _pairs(tree: Any, name: str, other: Any) -> list[tuple[Any, Any]]:
    """Pairs the leaves of two trees, whose structures may differ as Flax's do."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    others = jax.tree.leaves(other)
    if len(leaves) != len(others):
        raise ValueError(
            f"`{name}` must have a leaf for each of the {len(leaves)} tensors, got "
            f"{len(others)}"
        )
    for (path, leaf), paired in zip(leaves, others, strict=True):
        if np.shape(leaf) != np.shape(paired):
            parameter = place(path_name(path))
            raise ValueError(
                f"`{name}` for {parameter} must have the shape {np.shape(leaf)}, got "
                f"{np.shape(paired)}"
            )
    return [(leaf, paired) for (_, leaf), paired in zip(leaves, others, strict=True)]


def _groups(params: optax.Params, rules: PerTensor[str] | None) -> dict[str, list[int]]:
    """Returns the positions of the leaves of each group, and of all of them."""
    everything = range(len(jax.tree.leaves(params)))
    groups = {TOTAL: list(everything)}
    if rules is None:
        return groups
    names = _GROUPS.resolve(rules, params)
    if TOTAL in names:
        raise ValueError(f"`rules` must not call a group {TOTAL!r}, the name of all")
    for position, name in enumerate(names):
        groups.setdefault(name, []).append(position)
    return groups


_GROUPS: Kind[str] = Kind(
    "rules", lambda value: isinstance(value, str), "a group's name"
)


@jax.jit
def _squares(x: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the squared norms of the difference of two arrays and of the second."""
    difference = widen(x) - widen(start)
    return _sum_of_squares(difference), _sum_of_squares(widen(start))


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jnp.abs(x)))


def _nonzero(update: jax.Array) -> jax.Array:
    """Returns 1 where an update moves its coordinate."""
    return _moves(update).astype(np.uint8)


def _nonzero_and_before(update: jax.Array, previous: jax.Array) -> jax.Array:
    """Returns 1 where an update moves its coordinate, 2 if the one before did too."""
    moves = _moves(update)
    return moves.astype(np.uint8) + (moves & _moves(previous)).astype(np.uint8)


def _moves(update: jax.Array) -> jax.Array:
    if jnp.issubdtype(update.dtype, jnp.inexact):
        return magnitude_patterns(update) > 0
    return update != 0


def _differs(x: jax.Array, start: jax.Array) -> jax.Array:
    """Returns 1 where the bits of two arrays differ, but for the sign of a zero."""
    start = start.astype(x.dtype)
    if jnp.iscomplexobj(x):
        return _differs(x.real, start.real) | _differs(x.imag, start.imag)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return (x != start).astype(np.uint8)
    magnitude, start_magnitude = magnitude_patterns(x), magnitude_patterns(start)
    unsigned = magnitude.dtype
    changed = lax.bitcast_convert_type(x, unsigned) != lax.bitcast_convert_type(
        start, unsigned
    )
    return (changed & ((magnitude | start_magnitude) > 0)).astype(np.uint8)


def _ratio(part: jax.Array, whole: jax.typing.ArrayLike) -> jax.Array:
    """Returns part / whole as float32, 0 of nothing."""
    return jnp.where(whole == 0, 0, part / jnp.maximum(whole, 1)).astype(jnp.float32)
