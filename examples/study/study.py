"""Performs the missing runs in the protocol's order, and stores each at once."""

import functools
import hashlib
import json
import pathlib
import time
from typing import Any

import jax

import mofo_jax
from examples.finetune.command.errors import InputError
from examples.finetune.command.optimizers import COVARIANCES, FISHER, NEEDS
from examples.finetune.data.encoding import Example
from examples.finetune.evaluation import token_losses
from examples.finetune.model import pretrained
from examples.finetune.training import after, movement, replay
from examples.finetune.training.own_text import Text
from examples.study import chat, deciding, own_texts, rows, start, texts
from examples.study.budget import BUDGETS, Budget
from examples.study.comparing import Compared
from examples.study.measuring import Measured, Reference, Scales
from examples.study.methods import METHODS, OwnTexts
from examples.study.options import Options
from examples.study.plan import START, Cell, Losses, Run, Step, steps
from examples.study.training import Course, Params, Trained, Trainer

PROTOCOL = pathlib.Path(__file__).with_name("PROTOCOL.md")


def say(text: str) -> None:
    """Prints a message."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def budget_of(options: Options) -> Budget:
    """Returns the budget of the options, or of the machine."""
    if options.budget != "auto":
        return BUDGETS[options.budget]
    return BUDGETS["cpu" if jax.default_backend() == "cpu" else "gpu"]


def open_study(options: Options) -> "Study":
    """Returns the study that the options describe."""
    return Study(options, budget_of(options))


def protocol() -> str:
    """Returns the digest of the protocol, which is part of every row's key."""
    return hashlib.sha256(PROTOCOL.read_bytes()).hexdigest()[:16]


class Study:
    """The data shared by all runs: the model, its start, texts and compiled functions.

    Args:
      options: the command's options.
      budget: sizes of the runs.
    """

    def __init__(self, options: Options, budget: Budget) -> None:
        self.options, self.budget = options, budget
        self._source = pretrained.open_model(options.model)
        self.texts = texts.read(options.data, self._source.tokenizer, budget)
        self.file = rows.file_of(
            options.output, self._source.name, budget.name, options.data
        )
        self._tasks: dict[str, texts.Task] = {}
        self._digests: dict[str, str] = {}
        self._written: dict[OwnTexts, list[Text]] = {}
        self._inputs: dict[OwnTexts, Params] = {}
        self._replays: dict[tuple[OwnTexts, int], tuple[list[Text], Any]] = {}
        self._scales: dict[str, tuple[Scales, Reference]] = {}
        self._unstored: list[rows.Row] = []
        given = [("task", name) for name in options.task]
        given += [("screen", options.screen)] if options.screen else []
        for option, name in given:
            if name not in self.texts.tasks:
                known = ", ".join(self.texts.tasks)
                raise InputError(f"--{option} must be of {known}, got {name!r}")

    @functools.cached_property
    def trainer(self) -> Trainer:
        """Returns the trainer, which reads the model's weights when first used."""
        say(f"Loading {self._source.name}")
        return Trainer(self._source, self.budget)

    @functools.cached_property
    def start(self) -> Params:
        """Returns the healed model's parameters, on the host."""
        return start.healed(self.trainer, self.texts, self.options.cache, say)

    @functools.cached_property
    def _fisher(self) -> Params:
        say("Fisher information of the start")
        return self.trainer.fisher(self.start)

    @functools.cached_property
    def chats(self) -> list[Example]:
        """Returns the start's chat answers, on which drift is measured."""
        file, count = self.file.with_name(chat.NAME), self.budget.text_items
        return chat.answers(self.trainer, self.start, file, count)

    def written(self, wanted: OwnTexts) -> list[Text]:
        """Returns texts by the start."""
        if wanted not in self._written:
            say("Texts by the start")
            self._written[wanted] = own_texts.write(self.trainer, self.start, wanted)
        return self._written[wanted]

    def _covariances(self, wanted: OwnTexts) -> Params:
        if wanted not in self._inputs:
            examples = [text.example for text in self.written(wanted)]
            say("Covariances of the start's inputs on its own texts")
            self._inputs.clear()  # Each takes much memory.
            self._inputs[wanted] = self.trainer.covariances(self.start, examples)
        return self._inputs[wanted]

    def _replayed(self, wanted: OwnTexts, length: int, seed: int) -> replay.Texts:
        """Returns the start's texts and predictions, for rows of a length."""
        if (wanted, length) not in self._replays:
            self._replays[wanted, length] = own_texts.predicted(
                self.trainer, self.start, self.written(wanted), length
            )
        texts, hidden = self._replays[wanted, length]
        return replay.Texts(texts, length, hidden, seed)

    def information(self, optimizer: str, written: OwnTexts) -> Params | None:
        """Returns what an optimizer needs to know about the start, from its texts."""
        need = NEEDS.get(optimizer)
        if need == COVARIANCES:
            return self._covariances(written)
        return self._fisher if need == FISHER else None

    def task(self, name: str) -> texts.Task:
        """Returns a task's rows, read when first used."""
        if name not in self._tasks:
            self._tasks[name] = self.texts.tasks[name]()
            self._digests[name] = self.texts.digest(self._tasks[name])
        return self._tasks[name]

    def key(self, run: Run) -> dict[str, Any]:
        """Returns all settings that determine a run's row, as JSON."""
        self.task(run.task)
        return {
            "run": str(run),
            "method": {} if run.method == START else METHODS[run.method].key(),
            "budget": self.budget.name,
            "model": self._source.name,
            "data": self._digests[run.task],
            "protocol": protocol(),
        }

    def plan(self) -> list[Step]:
        """Returns the steps of the protocol, restricted by the options.

        Raises:
          InputError: there is no step of a given name.
        """
        wanted, tasks = self.options, list(self.texts.tasks)
        found = Compared(self._rows())
        own = deciding.comparator(found, tasks[0], self.budget.short)
        every = steps(self.budget, tasks, own or "adamw")
        known = [step.name for step in every]
        for name in wanted.step:
            if name not in known:
                raise InputError(f"--step must be of {', '.join(known)}, got {name!r}")

        def chosen(cell: Cell) -> bool:
            return (not wanted.task or cell.task in wanted.task) and (
                not wanted.method or cell.method in wanted.method
            )

        return [
            Step(step.name, [cell for cell in step.cells if chosen(cell)])
            for step in every
            if not wanted.step or step.name in wanted.step
        ]

    def row(self, run: Run) -> rows.Row | None:
        """Returns a run's row with the same data and settings, if there is one."""
        return rows.find([*rows.read(self.file), *self._unstored], self.key(run))

    def losses(self) -> Losses:
        """Returns the task losses of the stored rows."""
        return Compared(self._rows()).losses

    def _rows(self) -> list[rows.Row]:
        return [
            row
            for row in rows.read(self.file)
            if (run := rows.run_of(row)).task in self.texts.tasks
            and row["key"] == self.key(run)
        ]

    def scales(self, task: str) -> tuple[Scales, Reference]:
        """Returns the measurements of a task, and the start's data for comparison.

        The start's row is kept too.
        """
        if task not in self._scales:
            found = self.task(task)
            scales = Scales(
                {task: found.held_out},
                {**self.texts.retained, texts.CHAT: self.chats},
                self.texts.questions,
                self.trainer,
            )
            reference = self._reference(task, scales)
            self._scales[task] = scales, reference
        return self._scales[task]

    def _reference(self, task: str, scales: Scales) -> Reference:
        began = time.perf_counter()
        run, params = Run(task, START), self.trainer.begin(self.start)
        head = token_losses.head_of(params)
        given = self.key(run), [item.ids for item in self.chats]
        digest = hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]
        file = start.in_cache(self.options.cache, f"hidden-{digest}.npz")
        kept = self.row(run)
        if file.exists() and kept:
            return Reference(head, token_losses.load_hidden(file))
        say(f"Measuring the start on {task}")
        reference = Reference(head, {})
        measured = scales.measure(params, task, reference, start=True)
        if kept and not self.options.only:
            rows.check_start(self.file, kept, measured)
        token_losses.save_hidden(file, reference.hidden)
        about = {"counts": scales.counts(), "about": self.task(task).about}
        self._keep(run, measured | about, began)
        return reference

    def do(self, run: Run) -> rows.Row:
        """Performs one run and stores its row, unless a single run is repeated.

        Returns:
          The row.
        """
        scales, reference = self.scales(run.task)
        if run.method == START:
            kept = self.row(run)
            assert kept is not None
            return kept
        began = time.perf_counter()
        trained = self.train(run)
        measured = scales.measure(trained.params, run.task, reference)
        moved = movement.of_run(trained.params, self.start)
        about = {
            "distance": round(moved["distance"]["total"], 4),
            "moved": round(moved["moved_fraction"]["ever"], 4),
            "training_loss": round(trained.loss, 4),
            "seconds_per_step": round(trained.seconds_per_step, 3),
            "tokens": trained.tokens,
        }
        return self._keep(run, measured | about, began)

    def train(self, run: Run) -> Trained:
        """Trains according to a run."""
        method, task = METHODS[run.method], self.task(run.task)
        replayed = None
        if method.replay_every:
            texts = self._replayed(method.own_texts, task.length, run.seed)
            replayed = texts, method.replay_every
        steps = method.trained_steps(run.steps)
        course = Course(
            task.training,
            task.length,
            steps,
            max(1, round(steps * method.warmup)),
            run.seed,
            method.batches,
            replayed,
        )
        trained = self.trainer.train(
            *(method.optimizer, method.config(run.seed), run.rate, self.start, course),
            self.information(method.optimizer, method.own_texts),
            method.frozen,
        )
        params = after.change(
            method.config(run.seed),
            trained.params,
            lambda: self.trainer.begin(self.start),
        )
        return trained._replace(params=params)

    def _keep(self, run: Run, row: Measured, began: float) -> rows.Row:
        about = {
            "seconds": round(time.perf_counter() - began, 1),
            "version": mofo_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        whole = {"key": self.key(run), **about, **row}
        if self.options.only:
            # Rows of other data would take the place of the stored ones in tables.
            self._unstored.append(whole)
        else:
            rows.add(self.file, whole)
        return whole
