"""Does the runs that are missing, the most useful first, and keeps each at once."""

import functools
import pathlib
import statistics
import time
from collections.abc import Iterable
from typing import Any

import jax

import mofo_jax
from examples.finetune import movement, pretrained, token_losses
from examples.finetune.errors import InputError
from examples.finetune.optimizers import NEEDS_FISHER
from examples.study import rows, start, texts
from examples.study.budget import BUDGETS, Budget
from examples.study.measuring import Measured, Reference, Scales
from examples.study.methods import METHODS
from examples.study.options import Options
from examples.study.plan import BASE, SEQUENCE, STAGES, Run, plan
from examples.study.sequence import stages
from examples.study.training import Course, Params, Trained, Trainer


def say(text: str) -> None:
    """Tells the user what goes on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def budget_of(options: Options) -> Budget:
    """The sizes that the options, or else the machine, ask for."""
    if options.budget != "auto":
        return BUDGETS[options.budget]
    return BUDGETS["cpu" if jax.default_backend() == "cpu" else "gpu"]


class Study:
    """What all runs share: the model, its starts, the texts and compiled functions.

    Args:
      options: what the command was told.
      budget: sizes of the runs.
    """

    def __init__(self, options: Options, budget: Budget) -> None:
        self.options, self.budget = options, budget
        source = pretrained.open_model(options.model)
        self.texts = texts.read(options.data, source.tokenizer, budget)
        self.file = rows.file_of(options.output, budget.name, options.data)
        self._source = source
        self._references: dict[bool, Reference] = {}
        for name in options.task:
            if name not in (*self.texts.tasks, SEQUENCE):
                known = ", ".join((*self.texts.tasks, SEQUENCE))
                raise InputError(f"--task must be of {known}, got {name!r}")

    @functools.cached_property
    def trainer(self) -> Trainer:
        """Has the model's weights, read only where something is missing."""
        say(f"Loading {self._source.name}")
        return Trainer(self._source, self.budget)

    @functools.cached_property
    def scales(self) -> Scales:
        """What is measured on."""
        return Scales(self.texts, self.trainer)

    @functools.cached_property
    def _healed(self) -> Params:
        return start.healed(self.trainer, self.texts, self.options.cache, say)

    @functools.cached_property
    def _fisher(self) -> Params:
        say("Fisher information of the start")
        return self.trainer.fisher(self._healed)

    def start(self, healed: bool) -> Params:
        """A start's parameters, on the host."""
        return self._healed if healed else self.trainer.quantized

    def key(self, run: Run) -> dict[str, Any]:
        """All that decides a run's row."""
        return {
            **run.key(self.budget),
            "model": self._source.name,
            "texts": self.texts.digest,
        }

    def missing(self) -> list[Run]:
        """The runs that were asked for and are not in the file, in order."""
        there = rows.read(self.file)
        chosen, methods = self.options.task, self.options.method
        stages_too = len(self.texts.stages) > 0
        return [
            run
            for run in plan(self.texts.tasks, sequence=stages_too)
            if (not chosen or run.task in chosen)
            and (not methods or run.method in methods)
            and rows.find(there, self.key(run)) is None
        ]

    def reference(self, healed: bool, tasks: Iterable[str]) -> Reference:
        """What a start's runs are compared with; its row is kept on the way.

        Args:
          healed: which start.
          tasks: those on which its runs are measured.
        """
        scales, kept = self.scales, self._references.get(healed)
        hidden = {} if kept is None else kept.hidden
        tasks = [name for name in tasks if name not in hidden]
        names = [*tasks, *(name for name in scales.retained if name not in hidden)]
        if kept is None or names:
            say(f"Measuring the start{'' if healed else ', not healed'}")
            params = self.trainer.begin(self.start(healed))
            began = time.perf_counter()
            kept = kept or Reference(token_losses.head_of(params), hidden)
            key = self.key(Run(BASE, "adamw", 0.0, healed=healed))
            row = rows.find(rows.read(self.file), key) or {"sets": {}, "exact": {}}
            sets = scales.sets(params, names, kept, start=True)
            if not set(names) <= set(row["sets"]):
                measured = {
                    "sets": sets | row["sets"],
                    "choices": row.get("choices") or scales.choices(params),
                    "exact": scales.exact(params, tasks) | row["exact"],
                    "counts": scales.counts(),
                }
                self._keep(key, measured, began)
            self._references[healed] = kept
        return kept

    def train(
        self, run: Run, course: Course, before: Params, draw: int | None = None
    ) -> Trained:
        """Trains as a run says."""
        method = METHODS[run.method]
        needed = method.optimizer in NEEDS_FISHER
        config = method.config(run.seed if draw is None else draw)
        given = method.optimizer, config, run.rate, before, course
        return self.trainer.train(*given, self._fisher if needed else None)

    def do(self, run: Run, derived: list[Run]) -> None:
        """Trains once, and keeps the rows of all runs that come from it."""
        if run.task == BASE:
            self.reference(run.healed, [next(iter(self.texts.tasks))])
            return
        learned = STAGES if run.task == SEQUENCE else [run.task]
        reference = self.reference(run.healed, learned)
        began = time.perf_counter()
        if run.task == SEQUENCE:
            self._keep(self.key(run), stages(self, run, reference), began)
            return
        task, budget = self.texts.tasks[run.task], self.budget
        course = Course(
            task.training,
            task.length,
            budget.steps * run.times,
            budget.warmup_steps * run.times,
            run.seed,
        )
        before = self.start(run.healed)
        trained = self.train(run, course, before)
        for one in derived:
            params = trained.params
            if one.share < 1:
                begun = self.trainer.begin(before)
                params = mofo_jax.baselines.interpolate_weights(
                    begun, params, one.share
                )
            measured = self.scales.measure(params, [one.task], reference)
            self._keep(self.key(one), measured | about(trained, params, before), began)
            began = time.perf_counter()

    def _keep(self, key: dict[str, Any], row: Measured, began: float) -> None:
        about = {
            "seconds": round(time.perf_counter() - began, 1),
            "version": mofo_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        rows.add(self.file, {"key": key, **about, **row})


def about(trained: Trained, params: Params, before: Params) -> Measured:
    """What a row says of training itself."""
    moved = movement.of_run(params, before)
    return {
        "distance": round(moved["distance"]["total"], 4),
        "moved": round(moved["moved_fraction"]["ever"], 4),
        "training_loss": round(trained.loss, 4),
        "seconds_per_step": round(trained.seconds_per_step, 3),
        "tokens": trained.tokens,
    }


def run(options: Options) -> pathlib.Path:
    """Does missing runs until there are none, or the hours are over.

    Returns:
      The results file.

    Raises:
      InputError: something the user gave cannot work.
    """
    deadline = time.monotonic() + options.hours * 3600
    study = Study(options, budget_of(options))
    missing = study.missing()
    say(f"{len(missing)} runs are missing in {study.file}")
    while missing:
        left, one = deadline - time.monotonic(), _seconds_of_a_run(study)
        next_ = next((r for r in missing if _parts(r) * one <= left), None)
        if next_ is None:
            say(f"The hours are over; {len(missing)} runs are missing")
            break
        derived = [run for run in missing if run.trained == next_.trained]
        name = METHODS[next_.method].title
        say(f"{next_.task}, {name}, rate {next_.rate:g}, of {len(missing)} missing")
        study.do(next_.trained, derived)
        missing = [run for run in missing if run not in derived]
    return study.file


def _seconds_of_a_run(study: Study) -> float:
    """What a short run takes, as far as earlier rows tell."""
    known = [
        row["seconds"] / row["key"]["times"]
        for row in rows.read(study.file)
        if row["key"]["task"] not in (BASE, SEQUENCE) and row["key"]["share"] == 1
    ]
    return statistics.median(known) if known else 0.0


def _parts(run: Run) -> int:
    """How many short runs a run takes as long as."""
    return len(STAGES) + 1 if run.task == SEQUENCE else run.times
