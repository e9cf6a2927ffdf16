"""The whole run: load, measure the base, train and measure each arm, report."""

import contextlib
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding

from examples.finetune.command.config import Config, learning_rates, option, to_json
from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch, training_batches
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import evaluate
from examples.finetune.model import export, lora, parameters, pretrained, sharding
from examples.finetune.running import inputs, report
from examples.finetune.storage.checkpoints import ArmFiles
from examples.finetune.storage.run_directory import RESULT, claim, finished_arms
from examples.finetune.system import hosts
from examples.finetune.system.files import write_json
from examples.finetune.training import after, fisher, movement
from examples.finetune.training.optimizers import NEEDS_FISHER
from examples.finetune.training.train import Arm, train


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every arm shares.

    Attributes:
      config: the run's settings.
      source: the opened model.
      graph: the model's structure.
      trained: the part of it that is trained.
      start: its parameters on the host, as `parameters.keep` keeps them.
      places: their shardings.
      spec: how the rows of a batch lie on the devices.
      training: examples to learn from.
      suite: what to measure on.
    """

    config: Config
    source: pretrained.Source
    graph: nnx.GraphDef
    trained: lora.Trained
    start: Any
    places: Any
    spec: NamedSharding
    training: list[Example]
    suite: evaluate.Suite

    def begin(self) -> Any:
        """The parameters with which every arm begins, on the devices."""
        return parameters.place(self.start, self.places)

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """Puts a batch of which this process has all rows on the devices."""
        return sharding.place_batch(batch, self.spec)


def run(config: Config) -> None:
    """Does what the configuration says and leaves the results in its run directory.

    Args:
      config: checked by `checks.check_options`.

    Raises:
      InputError: something the user gave cannot work.
    """
    with contextlib.ExitStack() as held:
        _run(config, held)


def _run(config: Config, held: contextlib.ExitStack) -> None:
    setup, base_params = _prepare(config, held)
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
    hosts.by_first(lambda: _report(setup, base))


def say(text: str) -> None:
    """Tells the user what begins."""
    if hosts.is_first():
        print(text, flush=True)


def say_step(text: str) -> None:
    """Tells the user a part of what goes on."""
    say(f"  {text}")


def _prepare(config: Config, held: contextlib.ExitStack) -> tuple[Setup, Any]:
    given = hosts.together(lambda: inputs.find(config))
    source, mesh = given.source, given.mesh
    started = {option(name): value for name, value in to_json(config).items()}
    del started[option("process_id")]
    hosts.check_alike(started | given.settings)
    # Held until the run ends: nobody else may work there.
    hosts.by_first(lambda: held.enter_context(claim(config.output, given.settings)))
    say(f"Loading {source.name}")
    options: dict[str, Any] = {
        "dtype": config.compute_dtype,
        "param_dtype": config.param_dtype,
        "scan_layers": config.scan_layers,
        "remat": config.remat,
        "mesh": mesh,
    }
    adapter = lora.adapter_of(config)
    graph, params = parameters.split(pretrained.build(source, **options))
    adapted = pretrained.structure(source, **options, adapter=adapter)
    setup = Setup(
        config=config,
        source=source,
        graph=graph,
        trained=lora.Trained(*adapted, adapter, config.seed, mesh),
        start=parameters.keep(params),
        places=parameters.shardings(params),
        spec=sharding.batch_sharding(mesh),
        training=given.training,
        suite=given.suite,
    )
    return setup, params


def _run_arm(setup: Setup, arm: Arm, files: ArmFiles, base: evaluate.Base) -> None:
    config = setup.config
    if hosts.by_first((files.path / RESULT).exists):
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
    rows = config.batch_size * config.accumulation_steps
    batches = training_batches(
        setup.training,
        batch_size=rows,
        rows=sharding.own_rows(setup.spec, rows),
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

    def place(batch: Batch) -> dict[str, jax.Array]:
        arrays = {name: x for name, x in batch.items() if name != "count"}
        return sharding.place_rows(arrays, setup.spec, rows)

    given = config, arm, part.graph, start, iter(batches), place, files
    trained, position = train(*given, frozen, information)
    params = after.change(config, part.finish(trained, frozen), setup.begin)
    del trained, frozen
    say(f"Measuring {arm.name}")
    measured, answers, _ = evaluate.measure(
        graph, params, setup.suite, setup.place, base, say_step
    )
    measured |= movement.of_run(params, setup.begin()) | {
        "steps": position.step,
        "skipped_steps": position.skipped,
        "tokens": position.tokens,
        "learning_rate": arm.peak,
        "params_sha256": parameters.sha256(params),
    }
    hosts.by_first(lambda: _keep_result(files, measured, answers))
    return params


def _keep_result(
    files: ArmFiles, measured: Mapping[str, Any], answers: Sequence[str]
) -> None:
    rows = files.metrics()
    if not rows:
        raise InputError(
            f"{files.path / 'metrics.jsonl'} has no step that was logged; put back a "
            f"copy, or remove {files.path} and the arm begins anew"
        )
    steps = movement.of_steps(rows)
    result = {
        **measured,
        **steps,
        "moved_fraction": measured["moved_fraction"] | steps["moved_fraction"],
        "seconds_per_step": statistics.median(row["seconds_per_step"] for row in rows),
    }
    write_json(files.path / RESULT, {"result": result, "answers": answers})


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
