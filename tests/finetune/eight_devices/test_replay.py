"""Replay on a mesh of eight devices."""

import jax
import numpy as np

from examples.finetune.model import parameters
from examples.finetune.model.pretrained import Source
from examples.finetune.training.step import gradients
from tests.finetune.arms import CONFIG, batches
from tests.finetune.training.test_replay import Model


def found(model: Model, rows: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the means and the gradient of a step with replay."""
    batch = {name: x for name, x in next(batches(CONFIG)).items() if name != "count"}
    term = model.term(1, 3.0, rows)

    @jax.jit
    def step(params: object) -> object:
        return gradients(model.graph, params, batch_on, 1, term=term)

    batch_on = model.place(batch)
    means, gradient = step(model.params)
    host = parameters.flat(parameters.to_host(gradient))
    return {name: float(x) for name, x in means.items()}, host


def test_a_step_with_replay_is_that_of_one_device(tiny_source: Source) -> None:
    alone = Model(tiny_source, devices=1)
    spread = Model(tiny_source, "data=2,fsdp=2,tensor=2")
    means, gradient = found(alone, 4)
    others, other = found(spread, 4)
    assert means["replay_kl"] > 1e-3
    for name, value in means.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-4)
    for path, values in gradient.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(other[path], values, rtol=0, atol=1e-3 * scale)
