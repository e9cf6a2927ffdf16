"""Part `passes`: the momenta and step times of a real fine-tuning run.

AdamW and MoFO fine-tune the same model on the same batches, alternating steps. At a few
steps, each layer's momentum under MoFO is searched separately, and the passes over it
are counted.
"""

from typing import Any

import numpy as np
import tqdm

import mofo_jax
from examples.benchmarks import fine_tuning, timing
from examples.benchmarks.results import Entry
from examples.finetune.command.config import Config

SEQUENCE_LENGTH = 128
DTYPES = ("float32", "bfloat16", "float16")
FRACTION = Config().update_fraction


def measure(model: str, steps: int) -> Entry:
    """Fine-tunes a model with both optimizers for a few steps.

    Args:
      model: the model, as in `examples.finetune`.
      steps: number of steps of each optimizer.

    Returns:
      Under `arms` the times of a training step, and under `passes`, by step, dtype and
      kind of tensor, the most and the mean number of passes over one layer's tensor.

    Raises:
      InputError: the model is invalid or cannot be fetched.
    """
    problem = fine_tuning.pretrained_problem(model, SEQUENCE_LENGTH)
    counted = {1, min(10, steps), steps}
    passes = {}

    def look(number: int, mofo: fine_tuning.Arm) -> None:
        if number in counted:
            passes[str(number)] = count_passes(mofo.momenta())

    taken = fine_tuning.run(problem, steps, look)
    entry: Entry = {
        "model": problem.name,
        "rows": problem.config.batch_size,
        "tokens": SEQUENCE_LENGTH,
        "passes": passes,
    }
    if steps > fine_tuning.UNCOUNTED:
        counted_steps = {n: t[fine_tuning.UNCOUNTED :] for n, t in taken.items()}
        entry["arms"] = timing.rows(counted_steps, "adamw")
    return entry


def count_passes(momenta: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Counts the passes over each tensor, a layer at a time.

    Args:
      momenta: momenta by parameter path; layers are stacked on axis 0.

    Returns:
      `most` and `mean` by dtype and kind (kernels, embedding, norms, all).
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
    last = name.rpartition("/")[2]
    return {"kernel": "kernels", "scale": "norms"}.get(last, last)
