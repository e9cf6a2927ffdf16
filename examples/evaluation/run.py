"""The whole evaluation: tasks, model, harness and results."""

import difflib
import json
import pathlib
from typing import Any

from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    handle_non_serializable,
    make_table,
)

from examples.evaluation.harness import NnxLlama, check_window, greedy
from examples.evaluation.options import Options
from examples.finetune.command.errors import InputError
from examples.finetune.model import pretrained, sharding
from examples.finetune.running import checks
from examples.finetune.system.files import write_json, write_json_lines

OUR_TASKS = pathlib.Path(__file__).with_name("tasks")
RESULTS = "results.json"


def run(options: Options) -> None:
    """Runs an evaluation and writes the results to their directory.

    Args:
      options: from `options.parse`.

    Raises:
      InputError: an option, a file or a model cannot be used.
    """
    checks.check_room({options.output: 0})
    tasks, manager = load_tasks(options.tasks, options.include_path)
    model = _open(options, manager.load(tasks)["tasks"])
    found: Any = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        bootstrap_iters=options.bootstrap_iters,
        apply_chat_template=options.apply_chat_template,
    )
    # The harness's results contain functions and NumPy numbers.
    results = json.loads(json.dumps(found, default=handle_non_serializable))
    _write(results, options.output)
    for part in ("results", "groups"):
        if part in results:
            print(make_table(results, part))
    print(f"Results: {options.output / RESULTS}")


def load_tasks(
    names: tuple[str, ...], include_path: pathlib.Path | None = None
) -> tuple[list[Any], TaskManager]:
    """Finds tasks and loads their data.

    Args:
      names: names of tasks, groups or tags.
      include_path: a directory of additional tasks.

    Returns:
      Tasks and groups for `lm_eval.simple_evaluate`, and the manager that found them,
      without which the harness would index all of its own tasks again.

    Raises:
      InputError: a name is unknown, a task's data is not available, or a task is
        requested twice.
    """
    paths: list[str | pathlib.Path] = [
        path for path in (OUR_TASKS, include_path) if path is not None
    ]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        # The harness has thousands of tasks, which take ten seconds to read.
        manager = TaskManager(include_path=paths)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known)) or "none"
            raise InputError(
                f"--tasks has {name!r}, which is not a task; similar: {close}"
            )
    tasks = [task for name in names for task in _loaded(manager, name)]
    try:
        manager.load(tasks)
    except ValueError as error:  # A task and a group that contains it.
        raise InputError(f"--tasks {' '.join(names)}: {error}") from error
    return tasks, manager


def _loaded(manager: TaskManager, name: str) -> list[Any]:
    try:
        loaded = manager.load([name])
    # The libraries that download and read data raise various errors.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Cannot load the task {name!r}: {reason.rstrip('.')}. The harness's own "
            "tasks fetch their data from the Hugging Face Hub"
        ) from error
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def _open(options: Options, tasks: dict[str, Any]) -> NnxLlama:
    source = pretrained.open_model(options.model)
    window = check_window(options.max_length, source.config.max_positions)
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            _, most = greedy(task.config.generation_kwargs)
            if most >= window:
                raise InputError(
                    f"--max-length must be above {most}, the tokens that the task "
                    f"{name!r} may generate, got {window}"
                )
    if options.apply_chat_template:
        # Reject models without a template before their weights are read.
        source.tokenizer.chat([{"role": "user", "content": ""}])
    mesh = sharding.make_mesh(options.mesh)
    print(f"Loading {source.name}", flush=True)
    model = pretrained.build(
        source,
        scan_layers=True,
        mesh=mesh,
        dtype=options.compute_dtype,
        param_dtype=options.param_dtype,
    )
    return NnxLlama(
        model,
        source.tokenizer,
        name=source.name,
        batch_size=options.batch_size,
        max_length=options.max_length,
    )


def _write(results: dict[str, Any], directory: pathlib.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # Removed first and written last, so that the results are complete if it exists.
    (directory / RESULTS).unlink(missing_ok=True)
    for old in directory.glob("samples_*.jsonl"):
        old.unlink()
    for task, rows in results.pop("samples").items():
        write_json_lines(directory / f"samples_{task.replace('/', '_')}.jsonl", rows)
    write_json(directory / RESULTS, results)
