"""Counts of selected weights, against counts by hand."""

import jax.numpy as jnp
import numpy as np

import mofo_jax
from examples.study.inputs import BORDERS, selected_by_input


def test_weights_are_counted_by_the_size_of_their_input():
    # Two stacked kernels of three inputs and two outputs.
    moments = np.array([[1.0, 1.0, 1.0], [0.001, 0.0, 2.999]])
    matrices = jnp.array([np.diag(row) for row in moments])
    update = np.zeros((2, 3, 2))
    update[0, 0], update[1, 2, 1], update[1, 0, 0] = 1, 5, -1
    covariances = {
        "kernel": mofo_jax.InputCovariance(matrices, axes=(1,), batch_axes=(0,)),
        "scale": None,
    }
    direction = {"kernel": jnp.array(update), "scale": jnp.ones(3)}
    found = selected_by_input(direction, covariances)
    assert sum(found["weights"]) == 12 and sum(found["selected"]) == 4
    # All inputs of the first kernel equal the mean, which is a boundary.
    mean = BORDERS.index(1.0) + 1
    assert found["weights"][mean] == 6 + 2  # 2.999 is below the next border, 4.
    assert found["selected"][mean] == 2 + 1
    assert found["weights"][0] == 4 and found["selected"][0] == 1


def test_an_embedding_is_counted_along_its_last_axis():
    matrix = jnp.diag(jnp.array([8.0, 0.0]))
    covariances = {"embed": mofo_jax.InputCovariance(matrix, axes=(1,))}
    found = selected_by_input({"embed": jnp.array([[1.0, 0.0]] * 5)}, covariances)
    # Twice the mean is between 1 and 4.
    assert found["selected"][BORDERS.index(1.0) + 1] == 5
    assert found["weights"][BORDERS.index(1.0) + 1] == 5
    assert sum(found["selected"]) == 5 and sum(found["weights"]) == 10
