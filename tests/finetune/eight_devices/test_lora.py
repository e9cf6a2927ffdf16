"""LoRA on a mesh of eight devices."""

import dataclasses

import jax
import numpy as np
import pytest

from examples.finetune.model import parameters, sharding
from examples.finetune.model.pretrained import Source
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import init_state, make_step
from tests.finetune.arms import CONFIG, batches
from tests.finetune.model.test_lora import Built, build, random_factors


def losses(built: Built, mesh: jax.sharding.Mesh, scan: bool) -> list[float]:
    """Returns the losses of two steps on one batch."""
    settings = dataclasses.replace(CONFIG, scan_layers=scan)
    factors, frozen = built.trained.begin(built.params)
    transformation = make("mofo", settings, 1e-2)
    state = init_state(transformation, factors)
    graph = built.trained.graph
    step = make_step(graph, transformation, 1, factors, state, frozen)
    where = sharding.batch_sharding(mesh)
    batch = jax.device_put(next(batches(settings)), where)
    found = []
    for _ in range(2):
        factors, state, metrics = step(factors, state, batch)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize("scan", [True, False])
def test_factors_are_split_as_their_kernels(tiny_source: Source, scan: bool) -> None:
    built = build(tiny_source, scan, "fsdp=4,tensor=2")
    factors, frozen = built.trained.begin(built.params)
    kernels, pairs = parameters.flat(frozen), parameters.flat(factors)
    for path, leaf in pairs.items():
        kernel = kernels[path.partition("lora/")[0] + "kernel"]
        side = -2 if path.endswith("a") else -1
        assert leaf.sharding.spec[side] == kernel.sharding.spec[side] is not None
        assert leaf.sharding.spec[-3 - side] is None
    merged = built.trained.finish(random_factors(built), frozen)
    for path, leaf in parameters.flat(merged).items():
        assert leaf.sharding.is_equivalent_to(kernels[path].sharding, leaf.ndim)


@pytest.mark.nightly
def test_the_mesh_changes_nothing(tiny_source: Source) -> None:
    found = []
    for description in ("", "fsdp=4,tensor=2"):
        built = build(tiny_source, True, description)
        found.append(losses(built, sharding.make_mesh(description), True))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert found[0][1] < found[0][0]
