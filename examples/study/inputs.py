"""The weights that a filter selects, by the size of their inputs."""

from typing import Any

import jax
import numpy as np

import mofo_jax

# Boundaries of the second moment of an input, relative to the mean of its kernel.
BORDERS = tuple(float(border) for border in 2.0 ** np.arange(-6, 11, 2))


def selected_by_input(direction: Any, covariances: Any) -> dict[str, list[float]]:
    """Counts the weights that a filter selects, by their input coordinate.

    A weight of a kernel is multiplied by one coordinate of the kernel's input. The
    second moment of this coordinate, relative to the mean over all coordinates of that
    input, measures its size on the texts of the covariances.

    Args:
      direction: a filter's update, which is zero where it does not select.
      covariances: the result of `mofo_jax.input_covariances`.

    Returns:
      `weights`, the number of weights below the first boundary, between each two, and
      above the last, and `selected`, the number of those that are selected.
    """
    weights = np.zeros(len(BORDERS) + 1)
    selected = np.zeros_like(weights)

    def count(covariance: mofo_jax.InputCovariance | None, update: jax.Array) -> None:
        if covariance is None:
            return
        moments = np.diagonal(np.asarray(covariance.matrix), axis1=-2, axis2=-1)
        relative = moments / moments.mean(axis=-1, keepdims=True)
        kept = (*covariance.batch_axes, *covariance.axes)
        others = tuple(axis for axis in range(update.ndim) if axis not in kept)
        chosen = np.asarray((update != 0).sum(axis=others)).reshape(relative.shape)
        each = np.prod([update.shape[axis] for axis in others])
        places = np.digitize(relative, BORDERS)
        np.add.at(weights, places, each)
        np.add.at(selected, places, chosen)

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, mofo_jax.InputCovariance)

    jax.tree.map(count, covariances, direction, is_leaf=is_leaf)
    return {"weights": weights.tolist(), "selected": selected.tolist()}
