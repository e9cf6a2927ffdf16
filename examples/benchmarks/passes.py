"""Part `passes`: a real fine-tuning run, its momenta and its steps' times.

AdamW and MoFO fine-tune the same model on the same batches, step by step in turn. At a
few steps every layer's momentum under MoFO is searched by itself, and the passes over
it are counted.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import tqdm

import mofo_jax
from examples.benchmarks import timing
from examples.finetune.command.config import Config
from examples.finetune.command.options import LEARNING_RATES
from examples.finetune.data.batches import Batch, training_batches
from examples.finetune.data.encoding import encode_rows
from examples.finetune.data.tasks import TASKS
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.training.optimizers import make
from examples.finetune.training.step import init_state, make_step

Entry = dict[str, Any]

BATCH_SIZE = 8
SEQUENCE_LENGTH = 128
# The first step compiles, and caches warm up in the second.
UNCOUNTED = 2
DTYPES = ("float32", "bfloat16", "float16")
FRACTION = Config().update_fraction


def measure(model: str, steps: int) -> Entry:
    """Fine-tunes a model with both optimizers, a few steps.

    Args:
      model: as `examples.finetune` takes it.
      steps: of each optimizer.

    Returns:
      Under `arms` the times of a training step, and under `passes`, by step, dtype and
      kind of tensor, the most and the mean number of passes over one layer's tensor.

    Raises:
      InputError: the model cannot be had.
    """
    config = Config(model=model, batch_size=BATCH_SIZE, sequence_length=SEQUENCE_LENGTH)
    source = pretrained.open_model(model)
    mesh = sharding.make_mesh(config.mesh)
    graph, params = parameters.split(
        pretrained.build(source, scan_layers=config.scan_layers, mesh=mesh)
    )
    start, places = parameters.to_host(params), parameters.shardings(params)
    del params
    arms = {name: _Arm(name, config, graph, start, places) for name in _NAMES}
    batches = _batches(config, source)
    spec = sharding.batch_sharding(mesh)
    counted = {1, min(10, steps), steps}
    passes = {}
    for number in tqdm.trange(1, steps + 1, desc="fine-tuning", unit="step"):
        batch = jax.device_put(next(batches), spec)
        for arm in arms.values():
            arm.step(batch)
        if number in counted:
            passes[str(number)] = count_passes(arms["mofo"].momenta())
    entry: Entry = {
        "model": source.name,
        "rows": BATCH_SIZE,
        "tokens": SEQUENCE_LENGTH,
        "passes": passes,
    }
    taken = {name: arm.seconds[UNCOUNTED:] for name, arm in arms.items()}
    if steps > UNCOUNTED:
        entry["arms"] = timing.rows(taken, "adamw")
    return entry


_NAMES = ("adamw", "mofo")


class _Arm:
    """One optimizer's run."""

    def __init__(
        self, name: str, config: Config, graph: Any, start: Any, places: Any
    ) -> None:
        """Places the parameters that the run starts from."""
        transformation = make(name, config, LEARNING_RATES["adamw"])
        self._params = parameters.place(start, places)
        self._state = init_state(transformation, self._params)
        self._step = make_step(graph, transformation, 1, self._params, self._state)
        self.seconds: list[float] = []

    def step(self, batch: Any) -> None:
        """Takes a training step and remembers its time."""
        before = time.perf_counter()
        self._params, self._state, _ = self._step(self._params, self._state, batch)
        jax.block_until_ready((self._params, self._state))
        self.seconds.append(time.perf_counter() - before)

    def momenta(self) -> dict[str, jax.Array]:
        """The momenta by parameter path."""
        return parameters.flat(optax.tree.get(self._state.optimizer, "mu"))


def _batches(config: Config, source: pretrained.Source) -> Iterator[Batch]:
    rows = TASKS[config.task].rows(
        config.training_rows, seed=config.seed, split="train"
    )
    examples = encode_rows(
        rows, source.tokenizer, config.sequence_length, "the generated rows"
    )
    return iter(
        training_batches(
            examples,
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            pack=config.pack,
        )
    )


def count_passes(momenta: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Counts the passes over each tensor, a layer at a time.

    Args:
      momenta: by parameter path; those of layers are stacked on axis 0.

    Returns:
      By dtype and kind (kernels, embedding, norms, all), `most` and `mean`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tqdm.tqdm(
        total=len(DTYPES) * len(momenta), desc="counting passes", unit="tensor"
    ) as bar:
        for dtype in DTYPES:
            kinds: dict[str, list[int]] = {}
            for name, momentum in momenta.items():
                blocks = momentum if name.startswith("layers/") else momentum[None]
                numbers = [
                    int(mofo_jax.selection_passes(block.astype(dtype), FRACTION))
                    for block in blocks
                ]
                kinds.setdefault(_kind(name), []).extend(numbers)
                kinds.setdefault("all", []).extend(numbers)
                bar.update()
            found[dtype] = {
                kind: {"most": max(numbers), "mean": float(np.mean(numbers))}
                for kind, numbers in kinds.items()
            }
    return found


def _kind(name: str) -> str:
    if name.endswith("embedding"):
        return "embedding"
    return "norms" if name.endswith("scale") else "kernels"
