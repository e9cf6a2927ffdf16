"""Diagnostics: which coordinates move, at successive steps and over a whole run.

These are functions of trees that a training loop already has, so that no optimizer
needs state for them. They consist of comparisons and sums, and can run at every step,
inside `jax.jit` and under any sharding. Counts are exact for tensors of any size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mofo_jax._dtypes import widen
from mofo_jax._options.path_rules import Kind, PerTensor, named_leaves, place
from mofo_jax._selection.levels import count_levels
from mofo_jax._selection.patterns import magnitude_patterns

TOTAL = "total"


class Distance(NamedTuple):
    """The distance of parameters from their starting values.

    Attributes:
      distance: The Euclidean norm of the difference, shape ().
      relative: The distance divided by the norm of the starting values, shape ().
    """

    distance: jax.Array
    relative: jax.Array


def selected_share(updates: optax.Updates) -> Any:
    r"""Returns the share of each tensor's coordinates that an update moves.

    .. math::

      |\{i : u_i \ne 0\}| / n

    Args:
      updates: The updates that `update` returned, or boolean masks.

    Returns:
      A float32 scalar for each tensor, in the tree's structure; 0 for an empty tensor.

    Examples:
      >>> import jax.numpy as jnp, mofo_jax
      >>> optimizer = mofo_jax.mofo(1e-3, update_fraction=0.25)
      >>> params = {"bias": jnp.zeros(4), "kernel": jnp.zeros((2, 4))}
      >>> grads = {"bias": jnp.arange(4.), "kernel": jnp.ones((2, 4))}
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> {name: float(x) for name, x in mofo_jax.selected_share(updates).items()}
      {'bias': 0.25, 'kernel': 1.0}

    All momenta of the kernel are equal here, and the default ``ties="all"`` selects
    them all.

    Source: ours.
    """

    def share(update: Any) -> jax.Array:
        moves, _ = count_levels(_nonzero, update)
        return _ratio(moves, float(np.size(update)))

    return jax.tree.map(share, updates)


def mask_overlap(updates: optax.Updates, previous_updates: optax.Updates) -> Any:
    r"""Returns the share of each tensor's moving coordinates that moved a step earlier.

    .. math::

      |\{i : u_i \ne 0, u'_i \ne 0\}| / |\{i : u_i \ne 0\}|

    If each step selected a fraction :math:`\alpha` independently at random, the
    expected overlap would be :math:`\alpha`. Of the previous updates only the positions
    of nonzero values matter: a training loop may keep the masks ``update != 0``, one
    byte per coordinate.

    Args:
      updates: The updates that `update` returned, or boolean masks.
      previous_updates: Those of the previous step; leaves are paired in order.

    Returns:
      A float32 scalar for each tensor, in the structure of `updates`; 0 if no
      coordinate of `updates` moves.

    Raises:
      ValueError: If the two trees have different numbers of leaves, or leaves of
        different shapes.

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
    r"""Measures the distance of parameters from their starting values.

    .. math::

      \|\theta - \theta_0\|_2 \quad\text{and}\quad
      \|\theta - \theta_0\|_2 / \|\theta_0\|_2

    Differences and sums of squares are computed in float32, or in float64 for
    parameters of that precision. Integers of 2**24 or more are rounded.

    Args:
      params: The parameters, floating-point, integer or complex.
      start: The starting values, on the devices or, as NumPy arrays, on the host.
        Outside of `jax.jit`, host arrays are transferred one tensor at a time. Leaves
        are paired in order.
      rules: The name of each parameter's group, given as `PathRules` or in another form
        that `momentum_filter` accepts for an option per tensor. None defines no groups.

    Returns:
      A `Distance` for all parameters, with the key `"total"`, and one for each group
      that has parameters. The relative distance from a start of zeros is 0 or infinite.

    Raises:
      ValueError: If the two trees have different numbers of leaves or leaves of
        different shapes, a parameter has no group, or a group is named `"total"`.

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

    Source: Chen et al, `MoFO <https://arxiv.org/abs/2407.20999>`_, 2025, which
    attributes less forgetting to a smaller distance.
    """
    squares = [_squares(x, old) for x, old in _pairs(params, "start", start)]
    found = {}
    for group, members in _groups(params, rules).items():
        distance, size = (
            jnp.sqrt(sum((squares[i][part] for i in members), jnp.float32(0)))
            for part in (0, 1)
        )
        nothing = (distance == 0) & (size == 0)
        found[group] = Distance(distance, distance / jnp.where(nothing, 1, size))
    return found


def ever_moved_share(
    params: optax.Params, start: optax.Params, rules: PerTensor[str] | None = None
) -> dict[str, jax.Array]:
    """Returns the share of coordinates that differ from their starting values.

    A coordinate has moved if its bits differ from those at the start. The smallest
    change therefore counts, and a NaN that was present at the start does not. A zero
    whose sign changed does not count, since adding zero can change it. A coordinate
    that has returned to its starting value does not count either.

    Given the parameters after and before one step, the result is the share that the
    step moved.

    Args:
      params: The parameters.
      start: The starting values, as for `distance_from_start`, in dtypes that convert
        to those of `params` without loss.
      rules: The groups, as for `distance_from_start`.

    Returns:
      A float32 scalar for all parameters, with the key `"total"`, and one for each
      group that has parameters.

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
    """Pairs the leaves of two trees by order, since Flax may wrap them differently."""
    leaves = named_leaves(tree)
    others = jax.tree.leaves(other)
    if len(leaves) != len(others):
        raise ValueError(
            f"`{name}` must have a leaf for each of the {len(leaves)} tensors, got "
            f"{len(others)}"
        )
    for (path, leaf), paired in zip(leaves, others, strict=True):
        if np.shape(leaf) != np.shape(paired):
            parameter = place(path)
            raise ValueError(
                f"`{name}` for {parameter} must have the shape {np.shape(leaf)}, got "
                f"{np.shape(paired)}"
            )
    return [(leaf, paired) for (_, leaf), paired in zip(leaves, others, strict=True)]


def _groups(params: optax.Params, rules: PerTensor[str] | None) -> dict[str, list[int]]:
    """Returns the positions of the leaves of each group, and of all leaves."""
    everything = range(len(jax.tree.leaves(params)))
    groups = {TOTAL: list(everything)}
    if rules is None:
        return groups
    names = _GROUPS.resolve(rules, params)
    if TOTAL in names:
        raise ValueError(
            f"`rules` must not name a group {TOTAL!r}, which stands for all parameters"
        )
    for position, name in enumerate(names):
        groups.setdefault(name, []).append(position)
    return groups


_GROUPS: Kind[str] = Kind(
    "rules", lambda value: isinstance(value, str), "a group's name"
)


@jax.jit
def _squares(x: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the squared norms of `x - start` and of `start`."""
    difference = widen(x) - widen(start)
    return _sum_of_squares(difference), _sum_of_squares(widen(start))


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jnp.abs(x)))


def _nonzero(update: jax.Array) -> jax.Array:
    """Returns 1 where an update moves its coordinate."""
    return _moves(update).astype(np.uint8)


def _nonzero_and_before(update: jax.Array, previous: jax.Array) -> jax.Array:
    """Returns 1 where an update moves its coordinate, 2 if `previous` did too."""
    moves = _moves(update)
    return moves.astype(np.uint8) + (moves & _moves(previous)).astype(np.uint8)


def _moves(update: jax.Array) -> jax.Array:
    if jnp.issubdtype(update.dtype, jnp.inexact):
        return magnitude_patterns(update) > 0
    return update != 0


def _differs(x: jax.Array, start: jax.Array) -> jax.Array:
    """Returns 1 where the bits of two arrays differ, except in the sign of a zero."""
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
    """Returns part / whole as float32, and 0 if `whole` is 0."""
    return jnp.where(whole == 0, 0, part / jnp.maximum(whole, 1)).astype(jnp.float32)
