"""The command's actions: run what is missing, repeat a run, print the plan."""

import pathlib
import statistics
import time

from examples.finetune.command.errors import InputError
from examples.study import comparing, rows
from examples.study.methods import METHODS
from examples.study.options import Options
from examples.study.plan import START, Run, missing, runs_left
from examples.study.study import Study, open_study, say


def run(options: Options) -> pathlib.Path:
    """Performs missing runs until there are none, or the hours have passed.

    Returns:
      The results file.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    deadline = time.monotonic() + options.hours * 3600
    study = open_study(options)
    # The plan anew for each run, since the comparator depends on earlier ones.
    while found := next(missing(study.losses(), study.plan()), None):
        step, next_ = found
        seconds = _seconds(study, next_)
        if seconds > deadline - time.monotonic():
            say(f"The hours are over before {next_} ({step.name})")
            break
        say(f"{next_} ({step.name})")
        study.do(next_)
    return study.file


def _seconds(study: Study, run: Run) -> float:
    """Returns the expected duration of a run, estimated from earlier rows."""
    batches, rest = [], []
    for row in rows.read(study.file):
        if (done := rows.run_of(row)).steps:
            trained = row["seconds_per_step"] * METHODS[done.method].trained_steps(
                done.steps
            )
            batches.append(trained / _batches(done))
            rest.append(row["seconds"] - trained)
    if not batches:
        return 0.0
    return statistics.median(rest) + statistics.median(batches) * _batches(run)


def _batches(run: Run) -> int:
    """Returns the number of batches of the usual size that a run reads."""
    if run.method == START:
        return 0
    method = METHODS[run.method]
    return method.batches * method.trained_steps(run.steps)


def repeat(options: Options) -> None:
    """Repeats one run and prints it beside the stored row, if there is one.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    study = open_study(options)
    try:
        wanted = rows.parse(options.only)
    except ValueError:
        wanted = None
    tasks = study.texts.tasks
    if wanted is None or wanted.task not in tasks or wanted.method not in METHODS:
        raise InputError(
            "--only must name a run as the tables do, such as gsm8k/adamw/24/11/0.0001,"
            f" of one of the tasks {', '.join(tasks)} and of one of the methods "
            f"{', '.join(METHODS)}; got {options.only!r}"
        )
    kept, made = study.row(wanted), study.do(wanted)
    start = study.do(Run(wanted.task, START))
    columns = {"stored": kept, "repeated": made}
    if kept is None:
        say(
            f"{study.file} has no row of {wanted} with the same data, which include "
            "modules of the installed Python, so that its version matters"
        )
    for title in ("task loss", *(measure.title for measure in comparing.MEASURES)):
        values = [
            f"{comparing.summary(row, start)[title]:.5f} {name}"
            for name, row in columns.items()
            if row is not None
        ]
        print(f"{title}: {', '.join(values)}", flush=True)


def tell_plan(options: Options) -> None:
    """Prints what each step of the protocol still needs, and how long it takes.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    study = open_study(options)
    losses, total = study.losses(), 0.0
    for name, left in runs_left(losses, study.plan()).items():
        hours = sum(_seconds(study, run) for run in left) / 3600
        total += hours
        say(f"{name}: at least {len(left)} runs, {hours:.1f} hours")
    say(f"{len(losses)} rows are stored; at least {total:.1f} hours are left")
