"""What a run did: what was selected, whether it lasts, how far the parameters came.

Functions of trees that a training loop already has, so that no optimizer needs state
for them. They only compare and add up: they may run at every step, inside `jax.jit`,
under any sharding. Counts are exact, however large the tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mofo_jax import _tallies
from mofo_jax._options import path_rules
from mofo_jax._options.path_rules import path_name, place
from mofo_jax._selection import limbs

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
        moves, _ = _tallies.count(_tallies.nonzero, update)
        return _tallies.ratio(moves, limbs.constant(np.size(update), len(moves)))

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
        moves, again = _tallies.count(_tallies.nonzero_and_before, update, previous)
        overlaps.append(_tallies.ratio(again, moves))
    return jax.tree.structure(updates).unflatten(overlaps)


def distance_from_start(
    params: optax.Params, start: optax.Params, rules: Any = None
) -> dict[str, Distance]:
    r"""Measures how far parameters are from where they started.

    .. math::

      \|\theta - \theta_0\|_2 \quad\text{and}\quad
      \|\theta - \theta_0\|_2 / \|\theta_0\|_2

    Differences are taken and squares added in float32, or in float64 for such
    parameters. No square overflows: where one would, the sum is taken again of smaller
    numbers.

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
    norms = [_leaf_norms(x, old) for x, old in _pairs(params, "start", start)]
    found = {}
    for group, members in _groups(params, rules).items():
        distance, size = (
            _joint_norm([norms[i][part] for i in members]) for part in (0, 1)
        )
        nothing = (distance == 0) & (size == 0)
        found[group] = Distance(distance, jnp.where(nothing, 0, distance / size))
    return found


def ever_moved_share(
    params: optax.Params, start: optax.Params, rules: Any = None
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
    counts = [_tallies.count(_tallies.differs, x, old)[0] for x, old in pairs]
    sizes = [np.size(x) for x, _ in pairs]
    found = {}
    for group, members in _groups(params, rules).items():
        size = sum(sizes[i] for i in members)
        moved = _tallies.total([counts[i] for i in members], size)
        found[group] = _tallies.ratio(moved, limbs.constant(size, len(moved)))
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


def _groups(params: optax.Params, rules: Any) -> dict[str, list[int]]:
    """Returns the positions of the leaves of each group, and of all of them."""
    everything = range(len(jax.tree.leaves(params)))
    groups = {TOTAL: list(everything)}
    if rules is None:
        return groups
    names = path_rules.resolve(rules, "rules", params, _is_name, "a group's name")
    if TOTAL in names:
        raise ValueError(f"`rules` must not call a group {TOTAL!r}, the name of all")
    for position, name in enumerate(names):
        groups.setdefault(name, []).append(position)
    return groups


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


@jax.jit
def _leaf_norms(x: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the norms of the difference of two arrays and of the second."""
    wide = jnp.promote_types(jnp.promote_types(x.dtype, start.dtype), jnp.float32)
    return (
        _norm(lambda x, start: x.astype(wide) - start.astype(wide), x, start),
        _norm(lambda start: start.astype(wide), start),
    )


def _joint_norm(norms: Sequence[jax.Array]) -> jax.Array:
    """Returns the norm of tensors joined, of which each has its norm."""
    wide = jnp.result_type(jnp.float32, *norms)
    each = [jnp.zeros((), wide), *(norm.astype(wide) for norm in norms)]
    return _norm(lambda x: x, jnp.stack(each))


def _norm(value: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of value(*arrays)."""

    def norm(scale: float, *arrays: jax.Array) -> jax.Array:
        magnitudes = jnp.abs(value(*arrays) * scale)
        return jnp.sqrt(jnp.sum(jnp.square(magnitudes))) / scale

    plain = norm(1.0, *arrays)
    # Scaled by this, the square of the largest number fits 2**40 times.
    small = 2.0 ** -(jnp.finfo(plain.dtype).maxexp // 2 + 24)
    # Not scaled by the largest magnitude in any case: a maximum takes the CPU far
    # longer than a sum, and this branch is hardly ever taken.
    return lax.cond(
        jnp.isfinite(plain),
        lambda *_: plain,
        lambda *arrays: norm(small, *arrays),
        *arrays,
    )
