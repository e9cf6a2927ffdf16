"""The whole run: load, measure the base model, train and measure each arm, report."""

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from examples.finetune.command.config import Arm, Config, arms
from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch, training_batches
from examples.finetune.evaluation import evaluate
from examples.finetune.model import export, sharding
from examples.finetune.running import report
from examples.finetune.running.known import Known
from examples.finetune.running.setup import Setup, prepare, say, say_step
from examples.finetune.storage import checksums
from examples.finetune.storage.checkpoints import ArmFiles
from examples.finetune.storage.run_directory import RESULT, finished_arms
from examples.finetune.system import hosts
from examples.finetune.system.files import write_json
from examples.finetune.training import after, movement
from examples.finetune.training.train import Given, train


def run(config: Config) -> None:
    """Performs a run and writes its results to the run directory.

    Args:
      config: checked by `checks.check_options`.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    with contextlib.ExitStack() as held:
        _run(config, held)


def _run(config: Config, held: contextlib.ExitStack) -> None:
    setup, base_params = prepare(config, held)
    chosen = arms(config)
    # All are opened before training, so that another rate is rejected immediately.
    files = {
        arm.name: ArmFiles(config.output, arm.name, arm.peak, arm.replay)
        for arm in chosen
    }
    if config.keeps_master_weights:
        say(
            f"Parameters are {config.param_dtype}; the optimizer keeps in float32 what "
            "they cannot hold of their steps (--master-weights off: it does not)"
        )
    say("Measuring the base model")
    base = evaluate.base_record(
        config.output, setup.graph, base_params, setup.suite, setup.place, say_step
    )
    known = Known(setup, base_params, chosen)
    del base_params
    for arm in chosen:
        with files[arm.name] as kept:
            _run_arm(setup, arm, kept, base, known)
    names = [arm.name for arm in chosen]
    hosts.by_first(lambda: _report(setup, base, names))


def _run_arm(
    setup: Setup, arm: Arm, files: ArmFiles, base: evaluate.Base, known: Known
) -> None:
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
        params = _train_and_measure(setup, arm, files, base, known)
    if config.export:
        say(f"Exporting {arm.name} to {config.export / arm.name}")
        model = nnx.merge(setup.graph, params)
        export.export(model, setup.source.tokenizer, config.export / arm.name)


def _train_and_measure(
    setup: Setup, arm: Arm, files: ArmFiles, base: evaluate.Base, known: Known
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

    def place(batch: Batch) -> dict[str, jax.Array]:
        arrays = {name: x for name, x in batch.items() if name != "count"}
        return sharding.place_rows(arrays, setup.spec, rows)

    # `train` must hold the only reference to `Given` to free covariances, so `Given` is
    # made in the call.
    trained, position = train(
        config,
        arm,
        part.graph,
        start,
        Given(
            iter(batches),
            place,
            frozen,
            information=known.information(arm, start, frozen),
            term=known.term(arm, start, frozen),
        ),
        files,
    )
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
        "params_checksum": checksums.of_tree(params),
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


def _report(setup: Setup, base: evaluate.Base, names: Sequence[str]) -> None:
    config = setup.config
    kept = finished_arms(config.output, names)
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
