"""The user's input to a run, read and checked before any long work."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from examples.finetune.command.config import (
    FREE_SETTINGS,
    Config,
    arms,
    option,
    to_json,
)
from examples.finetune.data.encoding import Example, encode_rows
from examples.finetune.data.rows import read_rows
from examples.finetune.data.tasks import TASKS
from examples.finetune.evaluation import evaluate
from examples.finetune.model import export, lora, pretrained, sharding
from examples.finetune.running import checks
from examples.finetune.storage.checkpoints import KEPT_CHECKPOINTS
from examples.finetune.system import hosts
from examples.finetune.system.files import digest
from examples.finetune.training import replay

Rows = Sequence[Mapping[str, Any]]

_log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """The input of a run.

    Attributes:
      source: the opened model.
      mesh: the devices.
      training: examples to learn from.
      suite: the texts and questions for measurements.
      settings: everything that affects the results, by option, with digests of files.
    """

    source: pretrained.Source
    mesh: Mesh
    training: list[Example]
    suite: evaluate.Suite
    settings: dict[str, Any]


def find(config: Config) -> Inputs:
    """Reads and checks everything before any long work.

    Args:
      config: checked by `checks.check_options`.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    train_rows, task_rows, retained = _read(config)
    source = pretrained.open_model(config.model)
    checks.check_context(config, source.name, source.config.max_positions)
    lora.check_rank(lora.adapter_of(config), source.config)
    mesh = sharding.make_mesh(config.mesh)
    rows = sharding.row_shards(mesh)
    checks.check_rows(config, rows)
    training, task = (
        encode_rows(
            given,
            source.tokenizer,
            config.sequence_length,
            str(path or f"--task {config.task}"),
        )
        for given, path in (
            (train_rows, config.train_file),
            (task_rows, config.task_eval_file),
        )
    )
    suite = evaluate.make_suite(config, source.tokenizer, task, retained, rows)
    _warn_of_cut_answers(suite)
    checks.check_room(_needed(config, source))
    if config.export and hosts.is_first():
        for arm in arms(config):
            export.check_directory(config.export / arm.name)
    return Inputs(source, mesh, training, suite, _settings(config, source, rows))


def _warn_of_cut_answers(suite: evaluate.Suite) -> None:
    most = suite.max_new_tokens
    lengths = [len(suite.tokenizer.encode(text)) for text in suite.references]
    longer = sum(length > most for length in lengths)
    if most and longer:
        _log.warning(
            "%d of %d right answers have more than --max-new-tokens %d tokens, and "
            "cannot be matched",
            longer,
            len(lengths),
            most,
        )


def _read(config: Config) -> tuple[Rows, Rows, Mapping[str, Rows]]:
    files = checks.retention_files(config)
    retained = {name: read_rows(path) for name, path in files.items()}
    make = TASKS[config.task].rows
    if config.task_eval_file:
        task = read_rows(config.task_eval_file)
    else:
        task = make(config.evaluation_rows, seed=config.seed, split="test")
    if config.train_file:
        return read_rows(config.train_file), task, retained
    made = make(config.training_rows, seed=config.seed, split="train")
    return made, task, retained


def _settings(
    config: Config, source: pretrained.Source, row_shards: int
) -> dict[str, Any]:
    values = {
        option(name): value
        for name, value in to_json(config).items()
        if name not in FREE_SETTINGS
    }
    if config.replay:
        # The default depends on the mesh, and a run may continue on another.
        values[option("replay_batch_size")] = replay.rows_of_step(
            config.batch_size, row_shards, config.replay_batch_size
        )
    files = {
        option("model"): source.files,
        option("train_file"): (config.train_file,),
        option("task_eval_file"): (config.task_eval_file,),
    }
    files |= {
        f"--retention-file {name}": (path,)
        for name, path in checks.retention_files(config).items()
    }
    return values | {
        f"the content of {name}": digest(*paths)
        for name, paths in files.items()
        if all(paths)
    }


def _needed(config: Config, source: pretrained.Source) -> dict[Any, int]:
    """Returns the bytes to be written, by directory."""
    numbers = lora.trained_count(None, source.config)
    trained = lora.trained_count(lora.adapter_of(config), source.config)
    itemsize = jnp.dtype(config.param_dtype).itemsize
    names = [arm.name for arm in arms(config)]
    begun = [
        name
        for name in names
        if any((config.output / "arms" / name / "checkpoints").glob("*"))
    ]
    # The trained parameters, two moments and the last selection for each checkpoint,
    # and one more while the old ones exist.
    checkpoints = KEPT_CHECKPOINTS * (len(names) - len(begun)) + 1
    # Master weights are a copy in float32, with moments in float32.
    state = 3 * 4 if config.keeps_master_weights else 2 * itemsize
    needed = {config.output: trained * (itemsize + state + 1) * checkpoints}
    if config.export:
        needed[config.export] = numbers * itemsize * len(names)
    return needed
