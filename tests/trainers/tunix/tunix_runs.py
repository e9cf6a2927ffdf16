"""Runs of a few steps, with the values after each step, for Tunix's tests."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

import mofo_jax
from examples.trainers.flax_nnx_sharded import with_metadata
from tests.helpers import assert_same_bits
from tests.trainers import comparing
from tests.trainers.comparing import DAMPING, assert_the_largest_moved, gathered

pytest.importorskip(
    "tunix.sft.peft_trainer",
    reason="needs an environment with google-tunix, which .ci/trainers makes",
)
from examples.trainers.tunix import train as tunix_trainer

CONFIG = dataclasses.replace(tunix_trainer.CONFIG, num_layers=1)
STEPS = 3
# AdamW's default, which differs from MoFO's.
WEIGHT_DECAY = 1e-4

Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """The result of a run.

    Attributes:
      losses: the loss of each step.
      params: the parameters before the first step and after each, also untrained ones.
      momenta: the momenta of trained parameters after each step.
      trainer: the trainer after the run.
    """

    losses: list[float]
    params: list[Arrays]
    momenta: list[Arrays]
    trainer: Any


def flat(state: Any) -> Arrays:
    """Returns copies of the arrays of an NNX state by path."""
    return {
        "/".join(map(str, path)): gathered(variable[...]).copy()
        for path, variable in nnx.to_flat_state(state)
    }


def momenta(trainer: Any) -> Any:
    """Returns the momenta in a trainer's state."""
    return optax.tree.get(trainer.optimizer.opt_state, "mu")


def train(
    optimizer: optax.GradientTransformation,
    *,
    lora: bool = False,
    mesh: Mesh | None = None,
    around: contextlib.AbstractContextManager[Any] | None = None,
    data: Iterable[Any] | None = None,
    **options: Any,
) -> Run:
    """Trains the tiny model within `with mesh:` or another context."""
    on = tunix_trainer.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    model = tunix_trainer.build(CONFIG, on, lora)
    trainer = tunix_trainer.make_trainer(model, optimizer, **options)
    params, after = [flat(nnx.state(model, nnx.Param))], []

    def seen(batches: Iterable[Any]) -> Iterator[Any]:
        # A trainer requests the next batch after each step.
        for batch in batches:
            yield batch
            params.append(flat(nnx.state(model, nnx.Param)))
            after.append(flat(momenta(trainer)))

    batches = tunix_trainer.batches(STEPS, CONFIG.vocab_size) if data is None else data
    with mesh or contextlib.nullcontext() if around is None else around:
        trainer.train(seen(batches))
    return Run(tunix_trainer.history(trainer, "loss"), params, after, trainer)


@functools.cache
def run(name: str, lora: bool) -> Run:
    """Returns a run on one device, which is performed on the first call."""
    optimizers = {
        "adamw": optax.adamw(1e-2),
        "all": mofo_jax.mofo(1e-2, weight_decay=WEIGHT_DECAY, update_fraction=1),
        "mofo": mofo_jax.mofo(1e-2, weight_decay=WEIGHT_DECAY),
    }
    return train(optimizers[name], lora=lora)


def make_mesh(devices: int) -> Mesh:
    """Returns a mesh of a number of devices, 1 or an even one."""
    return tunix_trainer.make_mesh(jax.devices()[:devices], min(devices, 2))


@functools.cache
def run_inverse(devices: int) -> tuple[Any, Run]:
    """Returns covariances, and a run with them, which is performed on the first call.

    Args:
      devices: the number of devices, 1 or an even one.
    """
    mesh = make_mesh(devices)
    covariances, optimizer = inverse(mesh)
    return covariances, train(optimizer, mesh=mesh)


def check_scaled_step(devices: int) -> None:
    """Compares the first step with Adam's times the inverse."""
    covariances, ours = run_inverse(devices)
    adam = train(optax.adam(1e-2), mesh=make_mesh(devices))
    assert_same_bits(ours.params[0], adam.params[0])
    comparing.check_scaled_step(
        covariances, ours.params[0], adam.params[1], ours.params[1]
    )


def inverse(
    mesh: Mesh, damping: float = DAMPING
) -> tuple[Any, optax.GradientTransformation]:
    """Returns the covariances of the tiny model, and an optimizer that uses them."""
    model = tunix_trainer.build(CONFIG, mesh, False)
    texts = list(tunix_trainer.batches(2, CONFIG.vocab_size))
    covariances = tunix_trainer.input_covariances(model, texts)
    scale = mofo_jax.scale_by_inverse_covariance(covariances, damping)
    return covariances, optax.chain(
        optax.scale_by_adam(),
        with_metadata(scale, scale.init(nnx.state(model, nnx.Param))),
        optax.scale_by_learning_rate(1e-2),
    )


def assert_the_largest_move(
    run: Run, block_axes: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """Compares the coordinates that moved in each step with NumPy's selection."""
    steps = zip(run.params[:-1], run.params[1:], run.momenta, strict=True)
    for before, after, momenta in steps:
        assert_the_largest_moved(
            before, after, momenta, lambda path: (block_axes or {}).get(path, ())
        )
