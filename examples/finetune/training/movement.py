"""Measurements of what a step and a run moved, by kind of tensor."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import mofo_jax
from examples.finetune.model.sharding import parameter_path

Metrics = dict[str, jax.Array]

KINDS = mofo_jax.PathRules(
    {
        r"^embed/": "embedding",
        r"^head/": "head",
        r"norm/": "norm",
        r"/attention/": "attention",
        r"/mlp/": "mlp",
    }
)
_SELECTED = "selected_share/"


def selected(updates: Any) -> Any:
    """Returns where an update is not zero, as booleans."""
    return jax.tree.map(lambda update: update != 0, updates)


def of_step(new: Any, params: Any, updates: Any, before: Any) -> Metrics:
    """Measures what one step moved.

    Args:
      new: the parameters after the step.
      params: the parameters before it.
      updates: the updates of the parameters.
      before: the result of `selected` for the previous step.

    Returns:
      Float32 scalars: `moved_fraction`, the share of coordinates that changed;
      `mask_overlap`, the share of selected coordinates that the previous step selected
      too; and for each kind of tensor `selected_share/KIND`.
    """
    shares = mofo_jax.selected_share(updates)
    overlaps = mofo_jax.mask_overlap(updates, before)
    counts: Metrics = {}
    again = jnp.zeros(())
    sizes: dict[str, int] = {}
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    for (path, leaf), share, overlap in zip(
        leaves, jax.tree.leaves(shares), jax.tree.leaves(overlaps), strict=True
    ):
        kind = KINDS.value_at(parameter_path(path))
        counts[kind] = counts.get(kind, jnp.zeros(())) + share * float(leaf.size)
        sizes[kind] = sizes.get(kind, 0) + leaf.size
        again += overlap * share * float(leaf.size)
    # Not computed from updates, since those below half a unit in the last place move
    # nothing.
    moved = mofo_jax.ever_moved_share(new, params)["total"]
    return {
        "moved_fraction": moved,
        "mask_overlap": again / jnp.maximum(sum(counts.values()), 1),
        **{f"{_SELECTED}{kind}": counts[kind] / sizes[kind] for kind in counts},
    }


def of_run(params: Any, start: Any) -> dict[str, Any]:
    """Measures the distance of parameters from their start, and how many have moved.

    Args:
      params: a nested dict of arrays.
      start: the same tree, possibly on the host, compared one tensor at a time.

    Returns:
      `distance` and `relative_distance` (divided by the start's norm), under "total"
      and by kind of tensor; `moved_fraction`, whose "ever" is the share of coordinates
      that differ from the start; `ever_moved`, that share by kind.
    """
    found = mofo_jax.distance_from_start(params, start, KINDS)
    ever = mofo_jax.ever_moved_share(params, start, KINDS)
    shares = {kind: float(share) for kind, share in ever.items()}
    return {
        "distance": {kind: float(far.distance) for kind, far in found.items()},
        "relative_distance": {kind: float(far.relative) for kind, far in found.items()},
        "moved_fraction": {"ever": shares.pop("total")},
        "ever_moved": shares,
    }


def of_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the means of the measurements of `of_step` over an arm's logged steps.

    Skipped steps do not count, unless there are no others.

    Returns:
      `moved_fraction`, whose "per_step" is the share of coordinates that a step moved;
      `selected_share` by kind of tensor; `mask_overlap`, None if no step with a
      previous one was logged.
    """
    rows = [row for row in rows if not row.get("skipped")] or rows
    kinds = [key for key in rows[0] if key.startswith(_SELECTED)]
    overlaps = [row["mask_overlap"] for row in rows if "mask_overlap" in row]
    return {
        "moved_fraction": {"per_step": _mean(rows, "moved_fraction")},
        "selected_share": {
            key.removeprefix(_SELECTED): _mean(rows, key) for key in kinds
        },
        "mask_overlap": statistics.fmean(overlaps) if overlaps else None,
    }


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)
