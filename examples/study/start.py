"""The models from which runs start: the original one and the healed one.

The default model was rounded to 4 bits. Any training repairs part of this damage, which
would hide forgetting. A short training on neutral text therefore *heals* it first.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import platformdirs

from examples.finetune.command.config import Config
from examples.finetune.model import parameters
from examples.finetune.model.sharding import parameter_path
from examples.finetune.system.files import replacing
from examples.study.texts import Texts
from examples.study.training import Course, Params, Trainer

HEALING_RATE = 5e-5
WARMUP = 20  # The rate rises over one in this many steps.


def healed(
    trainer: Trainer,
    texts: Texts,
    cache: pathlib.Path | None,
    say: Callable[[str], None],
) -> Params:
    """Returns the healed model's parameters on the host, from the cache if possible.

    Args:
      trainer: the trainer with the original model.
      texts: the neutral text.
      cache: the cache's directory; None for the user's.
      say: called with a message before long work.
    """
    budget = trainer.budget
    if not budget.healing_steps:
        return trainer.quantized
    file = in_cache(cache, f"healed-{_digest(trainer, texts)}.npz")
    if not file.exists():
        say("Healing the model, once")
        course = Course(
            texts.neutral.training,
            texts.neutral.length,
            budget.healing_steps,
            budget.healing_steps // WARMUP,
            seed=0,
        )
        start = trainer.quantized
        given = "adamw", Config(), HEALING_RATE, start, course
        made = parameters.to_host(trainer.train(*given).params)
        with replacing(file) as opened:
            np.savez(opened, allow_pickle=False, **parameters.flat(made))
    return _read(file, trainer.quantized)


def in_cache(directory: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns a file of the cache, and makes its directory.

    Args:
      directory: the cache's directory; None for the user's.
      name: the file's name.
    """
    directory = directory or pathlib.Path(platformdirs.user_cache_dir("mofo_jax"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory / name


def _digest(trainer: Trainer, texts: Texts) -> str:
    """Returns a digest of everything that determines the healed weights."""
    budget, neutral = trainer.budget, texts.neutral
    settings = {
        "start": _sha256(trainer.quantized),
        "rate": HEALING_RATE,
        "steps": budget.healing_steps,
        "warmup_steps": budget.healing_steps // WARMUP,
        "batch_size": budget.batch_size,
        "dtype": budget.dtype,
        "length": neutral.length,
        "texts": [example.ids for example in neutral.training],
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _sha256(params: Params) -> str:
    """A digest of paths, types, shapes and values, in the order of the paths."""
    digest = hashlib.sha256()
    for path, leaf in parameters.flat(params).items():
        digest.update(f"{path}\n{leaf.dtype.name}\n{leaf.shape}\n".encode())
        little = leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()


def _read(file: pathlib.Path, like: Params) -> Params:
    with np.load(file) as arrays:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: arrays[parameter_path(path)], like
        )
