"""Tables of the stored entries."""

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from examples.benchmarks.results import Parts

# The width of tables that are written to a file.
FILE_WIDTH = 180

_TIMED = {
    "steps": "Whole optimizer steps, as ratios to optax.adamw in the same round",
    "pytorch": "Whole optimizer steps in one process with PyTorch",
    "passes": "Training steps of the fine-tuning run",
}
# What the names of cases contain, and the titles of their tables.
_COMMUNICATING = {
    ", pod ": "Whole models on a pod, per chip",
    ", inverse covariance": "Steps with inverse input covariances, per device",
}


def show(parts: Parts, console: rich.console.Console | None = None) -> None:
    """Prints all entries.

    Args:
      parts: entries by part and case, as `Results.read` returns them.
      console: where to print; by default the standard output.
    """
    console = console or rich.console.Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    tables = [timed(title, parts.get(part, {})) for part, title in _TIMED.items()]
    tables += [passes(parts.get("passes", {})), compiled(parts.get("compiled", {}))]
    for kind, title in _COMMUNICATING.items():
        cases = parts.get("compiled", {}).items()
        tables.append(communication(title, {k: v for k, v in cases if kind in k}))
    for table in tables:
        if table.row_count:
            console.print(table)
    for part, cases in parts.items():
        for case, entry in cases.items():
            if "skipped" in entry:
                console.print(f"{part}, {case}: {entry['skipped']}")


def timed(title: str, cases: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    """Returns a table of the timed optimizers in all cases."""
    table = _table(
        title,
        *("case", ""),
        *("ms", "ratio", "least to most", "rounds", "temporary MB", "compile s"),
    )
    for case, entry in cases.items():
        label = case
        for arm, row in entry.get("arms", {}).items():
            if "skipped" in row:
                table.add_row(label, arm, "-", row["skipped"].partition(":")[0])
                continue
            least, median, most = row["ratio"]
            table.add_row(
                label,
                arm,
                f"{1e3 * row['seconds']:.1f}",
                f"{median:.2f}",
                f"{least:.2f} to {most:.2f}",
                str(row["rounds"]),
                _number(row.get("temporary_bytes"), 1e-6),
                _number(row.get("compile_seconds")),
            )
            label = ""  # Only beside the first row.
        if "mofo_beside_topk" in entry:
            least, median, most = entry["mofo_beside_topk"]
            spread = f"{least:.3f} to {most:.3f}"
            table.add_row("", "mofo / by torch.topk", "", f"{median:.3f}", spread)
        table.add_section()
    return table


def passes(cases: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    """Returns the passes over the momenta of the real run, by step, dtype and kind."""
    kinds = ("kernels", "embedding", "norms", "all")
    table = _table(
        "Passes over the momenta of the fine-tuning run, greatest and mean number",
        *("case", "step", "dtype", *kinds),
    )
    for case, entry in cases.items():
        for step, dtypes in entry.get("passes", {}).items():
            for dtype, found in dtypes.items():
                table.add_row(
                    *(case, step, dtype),
                    *(
                        f"{found[kind]['most']}, {found[kind]['mean']:.1f}"
                        if kind in found
                        else "-"
                        for kind in kinds
                    ),
                )
    return table


def compiled(cases: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    """Returns a table of the compiled steps of AdamW and MoFO and their differences."""
    table = _table(
        "Compiled: temporary memory as a share of the parameters, and instructions",
        *("case", "tensors", "", "temporary", "all-reduces", "of them in loops"),
        *("all-gathers", "sorts", "compile s", "lowering s"),
    )
    for case, entry in cases.items():
        label = case, str(entry.get("tensors"))
        for name, row in entry.get("programs", {}).items():
            table.add_row(
                *label,
                name,
                _number(row["temporary_share"], digits=4),
                *(
                    str(row.get(key, "-"))
                    for key in ("all_reduce", "all_reduce_in_loops")
                ),
                *(str(row.get(key, "-")) for key in ("all_gather", "sort")),
                _number(row["compile_seconds"]),
                _number(row["lowering_seconds"]),
            )
            label = "", ""  # Only in the first row.
        if {"adamw", "mofo"} <= set(entry.get("programs", {})):
            table.add_row("", "", "difference", *beyond(entry["programs"]))
        table.add_section()
    return table


def communication(
    title: str, cases: Mapping[str, Mapping[str, Any]]
) -> rich.table.Table:
    """Returns a table of memory and communication in compiled steps."""
    table = _table(
        title,
        *("case", "", "arguments MB", "temporary MB", "collectives"),
        *("of them in loops", "MB outside of loops", "MB in loops, per iteration"),
        "compile s",
    )
    for case, entry in cases.items():
        label = case
        for name, row in entry.get("programs", {}).items():
            known = "collectives" in row
            looped = row["collective_bytes_in_loops"] if known else None
            rest = row["collective_bytes"] - looped if known else None
            table.add_row(
                *(label, name),
                _number(row["argument_bytes"], 1e-6),
                _number(row["temporary_bytes"], 1e-6),
                *(
                    str(row.get(key, "-"))
                    for key in ("collectives", "collectives_in_loops")
                ),
                *(_number(size, 1e-6, 2) for size in (rest, looped)),
                _number(row["compile_seconds"], digits=0),
            )
            label = ""  # Only in the first row.
    return table


def beyond(programs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns MoFO's figures minus AdamW's; for seconds, their ratios."""
    ours, theirs = programs["mofo"], programs["adamw"]

    def more(key: str) -> Any:
        known = ours.get(key) is not None and theirs.get(key) is not None
        return ours[key] - theirs[key] if known else None

    counts = ("all_reduce", "all_reduce_in_loops", "all_gather", "sort")
    return [
        _number(more("temporary_share"), digits=4),
        *(_number(more(key), digits=0) for key in counts),
        *(
            f"{ours[key] / theirs[key]:.2f}x"
            for key in ("compile_seconds", "lowering_seconds")
        ),
    ]


def _table(title: str, *headings: str) -> rich.table.Table:
    table = rich.table.Table(title=title)
    for heading in headings:
        words = heading in ("", "case", "dtype")
        table.add_column(heading, justify="left" if words else "right", no_wrap=words)
    return table


def _number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"
