"""The output at the end of a run: a table, report.md, summary.json, metrics.jsonl."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from examples.finetune.command.config import Config, to_json
from examples.finetune.data.tasks import TASKS
from examples.finetune.running import plots
from examples.finetune.system.files import write_json, write_json_lines, write_text

SAMPLES = 3

Row = tuple[str, list[str]]


def table(base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Returns the comparison as text: one line per measurement, one column per model.

    Args:
      base: the base model's measurements.
      arms: the results of each arm, as in summary.json.

    Returns:
      A heading and the cells for the base model and each arm, line by line; the first
      line has the names of the models.
    """
    models = [base, *arms.values()]
    rows: list[Row] = [
        ("", ["base", *arms]),
        ("learning rate", _cells(models, "{:g}", "learning_rate")),
        ("task loss", _cells(models, "{:.3f}", "task_loss")),
        ("task exact match", _cells(models, "{:.1%}", "task_accuracy")),
    ]
    for name in base["retention"]:
        accuracy = name == "knowledge"
        title, form = ("accuracy", "{:.1%}") if accuracy else ("loss", "{:.3f}")
        rows.append((f"{name} {title}", _cells(models, form, "retention", name)))
    divergences = dict.fromkeys(
        name for arm in arms.values() for name in arm["kl_to_base"]
    )
    for name in divergences:
        title = f"KL to base, {name.replace('_', ' ')}"
        rows.append((title, _cells(models, "{:.4f}", "kl_to_base", name)))
    for title, form, *keys in (
        ("distance from base", "{:.2f}", "distance", "total"),
        ("coordinates ever moved", "{:.1%}", "moved_fraction", "ever"),
        ("coordinates moved a step", "{:.1%}", "moved_fraction", "per_step"),
        ("selected as at the step before", "{:.1%}", "mask_overlap"),
        ("steps", "{:,d}", "steps"),
        ("steps skipped, gradients not finite", "{:,d}", "skipped_steps"),
        ("tokens", "{:,d}", "tokens"),
        ("seconds a step", "{:.2f}", "seconds_per_step"),
    ):
        rows.append((title, _cells(models, form, *keys)))
    return rows


def movement_table(arms: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Returns what moved by kind of tensor, like `table` without the base model."""
    rows: list[Row] = [("", list(arms))]
    for title, form, key in (
        ("selected a step", "{:.1%}", "selected_share"),
        ("ever moved", "{:.1%}", "ever_moved"),
        ("distance", "{:.3f}", "distance"),
        ("relative distance", "{:.5f}", "relative_distance"),
    ):
        kinds = dict.fromkeys(
            kind for arm in arms.values() for kind in arm.get(key, {})
        )
        kinds.pop("total", None)
        for kind in sorted(kinds):
            cells = _cells(list(arms.values()), form, key, kind)
            rows.append((f"{title}, {kind}", cells))
    return rows


def _cells(models: Sequence[Mapping[str, Any]], form: str, *keys: str) -> list[str]:
    cells = []
    for model in models:
        value: Any = model
        for key in keys:
            value = None if value is None else value.get(key)
        cells.append("-" if value is None else form.format(value))
    return cells


def write(
    config: Config,
    base: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Sequence[str]],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Writes report.md, summary.json, metrics.jsonl and the pictures.

    Args:
      config: the run's settings.
      base: the base model's measurements.
      arms: each arm's results.
      samples: lists of texts of equal length by heading: prompts, right answers, and
        the answers of the base model and each arm.
      metrics: each arm's logged steps.
    """
    run = config.output
    plots.training_curves(run / "training.png", metrics)
    plots.learned_and_forgotten(run / "forgetting.png", base, arms)
    write_json_lines(
        run / "metrics.jsonl", [row for rows in metrics.values() for row in rows]
    )
    text = markdown(config, base, table(base, arms), movement_table(arms), samples)
    write_text(run / "report.md", text)
    write_json(
        run / "summary.json", {"config": to_json(config), "base": base, "arms": arms}
    )


def markdown(
    config: Config,
    base: Mapping[str, Any],
    rows: Sequence[Row],
    moved: Sequence[Row],
    samples: Mapping[str, Sequence[str]],
) -> str:
    """Returns the report as Markdown.

    Args:
      config: as for `write`.
      base: the base model's measurements.
      rows: from `table`.
      moved: from `movement_table`.
      samples: as for `write`.
    """
    lines = [
        f"# {config.model} fine-tuned",
        "",
        f"Task: {config.train_file or TASKS[config.task].title}; "
        f"{config.steps} steps of {config.batch_size * config.accumulation_steps} "
        f"sequences of {config.sequence_length} tokens, seed {config.seed}.",
        *_about_lora(config),
        "",
        *_markdown_table(rows),
        "",
        "Losses and KL divergences are means in nats per token. Accuracy of the "
        "knowledge questions is by likelihood among four choices. "
        f"{_counted(base)}The distance is the Euclidean norm of the change of all "
        "parameters. A coordinate is a single number in a parameter; it has moved if "
        "its stored value has changed. Tokens are without padding.",
        "",
        "![Training curves](training.png)",
        "",
        "![Learned against forgotten](forgetting.png)",
        "",
        "## What moved, by kind of tensor",
        "",
        *_markdown_table(moved),
        "",
        "Selected are the coordinates whose update is not zero, in the mean over the "
        f"logged steps. {_about_updates(config)}A coordinate has ever moved if its "
        "value is not the base model's. The relative distance is divided by the norm "
        "of the base model's tensors.",
    ]
    if samples:
        lines += ["", "## Answers before and after"]
    for number, texts in enumerate(zip(*samples.values(), strict=True), 1):
        lines += ["", f"### Sample {number}"]
        for heading, text in zip(samples, texts, strict=True):
            lines += ["", f"**{heading}**", "", _quoted(text)]
    return "\n".join(lines) + "\n"


def _counted(base: Mapping[str, Any]) -> str:
    counts = base.get("counts")
    if not counts:
        return ""
    return (
        f"Exact match is of {counts['task']} answers, and accuracy of "
        f"{counts['knowledge']} questions. "
    )


def _about_updates(config: Config) -> str:
    said = ""
    if config.keeps_master_weights:
        said += (
            f"Updates that {config.param_dtype} rounds to zero, which the optimizer "
            "keeps for later steps, do not count. "
        )
    if config.unselected_scale:
        said += "With --unselected-scale, the others count too. "
    return said


def _about_lora(config: Config) -> list[str]:
    if not config.lora:
        return []
    scaled = "" if config.lora_alpha is None else f", alpha {config.lora_alpha:g}"
    return [
        f"LoRA of rank {config.lora}{scaled}: what a step selects and moves are its "
        "factors; all else is measured with them merged into the kernels."
    ]


def _markdown_table(rows: Sequence[Row]) -> list[str]:
    (_, names), *body = rows
    return [
        f"| | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
        *(f"| {title} | {' | '.join(cells)} |" for title, cells in body),
    ]


def _quoted(text: str) -> str:
    # A fence longer than any in the text, since models often write fences.
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip()}\n{fence}"


def show(rows: Sequence[Row], run: pathlib.Path) -> None:
    """Prints the table, and the path of the report."""
    (_, names), *body = rows
    printed = rich.table.Table(title="Learned and forgotten")
    printed.add_column("")
    for name in names:
        printed.add_column(name, justify="right")
    for title, cells in body:
        printed.add_row(title, *cells)
    console = rich.console.Console()
    console.print(printed)
    console.print(f"Report: {run / 'report.md'}", soft_wrap=True, highlight=False)
