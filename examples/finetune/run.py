"""The whole run: load, measure the base, train and measure each arm, report."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.finetune import (
    after,
    checks,
    data,
    evaluate,
    export,
    fisher,
    lora,
    movement,
    parameters,
    pretrained,
    report,
    sharding,
    word_problems,
)
from examples.finetune.checkpoints import (
    KEPT_CHECKPOINTS,
    RESULT,
    ArmFiles,
    claim,
    finished_arms,
)
from examples.finetune.config import (
    FREE_SETTINGS,
    Config,
    learning_rates,
    option,
    to_json,
)
from examples.finetune.files import digest, write_json
from examples.finetune.optimizers import NEEDS_FISHER
from examples.finetune.train import Arm, train

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every arm shares.

    Attributes:
      config: the run's settings.
      source: the opened model.
      graph: the model's structure.
      trained: the part of it that is trained.
      start: its parameters on the host.
      places: their shardings.
      place: puts a batch on the devices.
      training: examples to learn from.
      suite: what to measure on.
    """

    config: Config
    source: pretrained.Source
    graph: nnx.GraphDef
    trained: lora.Trained
    start: Any
    places: Any
    place: evaluate.Place
    training: list[data.Example]
    suite: evaluate.Suite

    def begin(self) -> Any:
        """The parameters with which every arm begins, on the devices."""
        return parameters.place(self.start, self.places)


def run(config: Config) -> None:
    """Does what the configuration says and leaves the results in its run directory.

    Args:
      config: checked by `checks.check_options`.

    Raises:
      InputError: something the user gave cannot work.
    """
    setup, base_params = _prepare(config)
    arms = [Arm(name, peak) for name, peak in learning_rates(config).items()]
    # All of them before the first trains: another rate is refused at once.
    files = {arm.name: ArmFiles(config.output, arm.name, arm.peak) for arm in arms}
    say("Measuring the base model")
    base = evaluate.base_record(
        config.output, setup.graph, base_params, setup.suite, setup.place, say_step
    )
    del base_params
    for arm in arms:
        with files[arm.name] as kept:
            _run_arm(setup, arm, kept, base)
    _report(setup, base)


def say(text: str) -> None:
    """Tells the user what begins."""
    print(text, flush=True)


def say_step(text: str) -> None:
    """Tells the user a part of what goes on."""
    say(f"  {text}")


def _prepare(config: Config) -> tuple[Setup, Any]:
    train_rows, task_rows, retained = _read(config)
    source = pretrained.open_model(config.model)
    checks.check_context(config, source.name, source.config.max_positions)
    adapter = lora.adapter_of(config)
    lora.check_rank(adapter, source.config)
    mesh = sharding.make_mesh(config.mesh)
    rows = sharding.row_shards(mesh)
    checks.check_rows(config, rows)
    training, task = (
        data.encode_rows(
            given, source.tokenizer, config.sequence_length, str(path or "the problems")
        )
        for given, path in (
            (train_rows, config.train_file),
            (task_rows, config.task_eval_file),
        )
    )
    suite = evaluate.make_suite(config, source.tokenizer, task, retained, rows)
    checks.check_room(_needed(config, source))
    if config.export:
        for name in config.optimizer:
            export.check_directory(config.export / name)
    claim(config.output, _settings(config))
    say(f"Loading {source.name}")
    options: dict[str, Any] = {
        "dtype": config.compute_dtype,
        "param_dtype": config.param_dtype,
        "scan_layers": config.scan_layers,
        "remat": config.remat,
        "mesh": mesh,
    }
    graph, params = parameters.split(pretrained.build(source, **options))
    adapted = pretrained.structure(source, **options, adapter=adapter)
    spec = sharding.batch_sharding(mesh)
    setup = Setup(
        config=config,
        source=source,
        graph=graph,
        trained=lora.Trained(*adapted, adapter, config.seed, mesh),
        start=parameters.to_host(params),
        places=parameters.shardings(params),
        place=lambda batch: jax.device_put(batch, spec),
        training=training,
        suite=suite,
    )
    return setup, params


def _read(config: Config) -> tuple[Rows, Rows, Mapping[str, Rows]]:
    files = checks.retention_files(config)
    retained = {name: data.read_rows(path) for name, path in files.items()}
    if config.task_eval_file:
        task = data.read_rows(config.task_eval_file)
    else:
        task = word_problems.problems(
            config.evaluation_problems, seed=config.seed, split="test"
        )
    if config.train_file:
        return data.read_rows(config.train_file), task, retained
    made = word_problems.problems(
        config.training_problems, seed=config.seed, split="train"
    )
    return made, task, retained


def _settings(config: Config) -> dict[str, Any]:
    """What decides the results, by option; files by their content too."""
    values = {
        option(name): value
        for name, value in to_json(config).items()
        if name not in FREE_SETTINGS
    }
    files = {
        option("train_file"): config.train_file,
        option("task_eval_file"): config.task_eval_file,
    }
    files |= {
        f"--retention-file {name}": path
        for name, path in checks.retention_files(config).items()
    }
    return values | {
        f"the content of {name}": digest(path) for name, path in files.items() if path
    }


def _needed(config: Config, source: pretrained.Source) -> dict[Any, int]:
    """Bytes to be written, by directory."""
    numbers = lora.trained_count(None, source.config)
    trained = lora.trained_count(lora.adapter_of(config), source.config)
    itemsize = jnp.dtype(config.param_dtype).itemsize
    begun = [
        name
        for name in config.optimizer
        if any((config.output / "arms" / name / "checkpoints").glob("*"))
    ]
    # What is trained, two moments and what was selected each, and one more while the
    # old one still stands.
    checkpoints = KEPT_CHECKPOINTS * (len(config.optimizer) - len(begun)) + 1
    needed = {config.output: trained * (3 * itemsize + 1) * checkpoints}
    if config.export:
        needed[config.export] = numbers * itemsize * len(config.optimizer)
    return needed


def _run_arm(setup: Setup, arm: Arm, files: ArmFiles, base: evaluate.Base) -> None:
    config = setup.config
    if (files.path / RESULT).exists():
        say(f"{arm.name} is finished already")
        if not config.export:
            return
        start = setup.begin()
        trained, frozen = setup.trained.begin(start)
        learned = setup.trained.finish(files.restore_params(trained), frozen)
        params = after.change(config, learned, setup.begin)
    else:
        params = _train_and_measure(setup, arm, files, base)
    if config.export:
        say(f"Exporting {arm.name} to {config.export / arm.name}")
        model = nnx.merge(setup.graph, params)
        export.export(model, setup.source.tokenizer, config.export / arm.name)


def _train_and_measure(
    setup: Setup, arm: Arm, files: ArmFiles, base: evaluate.Base
) -> Any:
    config, graph, part = setup.config, setup.graph, setup.trained
    say(f"Training with {arm.name}, learning rate {arm.peak:g}")
    batches = data.training_batches(
        setup.training,
        batch_size=config.batch_size * config.accumulation_steps,
        sequence_length=config.sequence_length,
        seed=config.seed,
        pack=config.pack,
    )
    start, frozen = part.begin(setup.begin())
    information = None
    if arm.name in NEEDS_FISHER:
        say_step("Fisher information")
        own = setup.source.tokenizer, setup.place
        information = fisher.of_base(config, graph, start, *own)
    given = config, arm, part.graph, start, iter(batches), setup.place, files
    trained, position = train(*given, frozen, information)
    params = after.change(config, part.finish(trained, frozen), setup.begin)
    del trained, frozen
    say(f"Measuring {arm.name}")
    measured, answers, _ = evaluate.measure(
        graph, params, setup.suite, setup.place, base, say_step
    )
    rows = files.metrics()
    whole, steps = movement.of_run(params, setup.start), movement.of_steps(rows)
    result = {
        **measured,
        **whole,
        **steps,
        "moved_fraction": whole["moved_fraction"] | steps["moved_fraction"],
        "steps": position.step,
        "tokens": position.tokens,
        "learning_rate": arm.peak,
        "seconds_per_step": statistics.median(row["seconds_per_step"] for row in rows),
        "params_sha256": parameters.sha256(params),
    }
    write_json(files.path / RESULT, {"result": result, "answers": answers})
    return params


def _report(setup: Setup, base: evaluate.Base) -> None:
    config = setup.config
    kept = finished_arms(config.output, config.optimizer)
    arms = {name: result["result"] for name, (result, _) in kept.items()}
    metrics = {name: rows for name, (_, rows) in kept.items()}
    samples = {}
    if base.answers:
        decode, suite = setup.source.tokenizer.decode, setup.suite
        samples = {
            "Prompt": [decode(ids) for ids in suite.prompts],
            "Right answer": suite.references,
            "base": base.answers,
            **{name: result["answers"] for name, (result, _) in kept.items()},
        }
    shown = {name: texts[: report.SAMPLES] for name, texts in samples.items()}
    report.write(config, base.measurements, arms, shown, metrics)
    report.show(report.table(base.measurements, arms), config.output)
