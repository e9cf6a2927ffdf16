"""The page that `examples.benchmarks.on_device` writes for a device."""

import pathlib
from collections.abc import Iterator, Sequence

from examples.benchmarks.results import Entry, Found, environment
from examples.finetune.system.files import replacing

# The bytes that a step has to move for each float32 coordinate. AdamW reads parameters,
# both moments and gradients, and writes all but the gradients. MoFO reads the new
# momentum and the new second moment again after the search, since no parameter can move
# before its end, and reads the momentum in every pass of the search.
_ADAMW_BYTES = 28
_MOFO_BYTES = 36
_PASS_BYTES = 4

_HEADINGS = (
    *("case", "step", "ms", "ratio to AdamW's", "least to most"),
    *("ratio to `lax.top_k`'s", "GB", "share of the copy's bandwidth"),
    *("temporary MB", "compile s"),
)


def write(path: pathlib.Path, found: Sequence[Found], sentence: str) -> str:
    """Writes the page and returns it.

    Args:
      path: the Markdown file.
      found: the measurements.
      sentence: the sentence of `verdict`.
    """
    page = "\n".join(_lines(path.stem, found, sentence)) + "\n"
    with replacing(path) as file:
        file.write(page.encode())
    return page


def verdict(found: Sequence[Found]) -> tuple[bool, str]:
    """Returns whether all checks held, and a sentence that says so."""
    checks = {
        f"{part}, {name}": entry
        for part, name, entry in found
        if part in ("selections", "training")
    }
    made = {name: entry for name, entry in checks.items() if "skipped" not in entry}
    count = sum(entry["selections"] for entry in made.values())
    wrong = [
        f"{name}, {what}" for name, entry in made.items() for what in entry["different"]
    ]
    missing = [name for name in checks if name not in made]
    if wrong:
        listed = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        return False, f"Checks failed: {len(wrong)} of {count:,} selections: {listed}."
    if not made:
        return False, f"No checks were made: {'; '.join(missing)}."
    sentence = f"{count:,} selections are equal to NumPy's"
    if missing:
        return True, (
            f"All checks that were made held: {sentence}. Not made: "
            f"{'; '.join(missing)}."
        )
    return True, f"All checks held: {sentence}."


def _lines(device: str, found: Sequence[Found], sentence: str) -> Iterator[str]:
    machine = environment()
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("jax", "optax") if name in machine
    )
    yield f"# {device}\n"
    yield f"`python -m examples.benchmarks.on_device`, {versions}. {sentence}\n"
    speed = None
    for _, _, entry in _measured(found, "bandwidth"):
        speed = entry["bytes"] / entry["seconds"]
        yield (
            f"Copying an array of {entry['bytes'] / 2e9:.2g} GB reads and writes "
            f"{speed / 1e9:,.0f} GB/s.\n"
        )
    yield from _row(*_HEADINGS)
    yield from _row("---", "---", *["---:"] * (len(_HEADINGS) - 2))
    for part in ("steps", "training"):
        for _, name, entry in _measured(found, part):
            yield from _rows(_label(part, name, entry), entry, speed)
    yield (
        "\nA step that reads the whole momentum in every pass reads and writes the GB "
        "in the table. Dividing them by its time gives the share of the copy's "
        "bandwidth.\n"
    )
    for _, name, entry in _measured(found, "selections"):
        seconds = " and ".join(f"{s:.1f}" for s in entry["compile_seconds"].values())
        yield (
            f'- {entry["selections"]} selections in the form "{name}", '
            f"{len(entry['different'])} of them different from NumPy's; compiled in "
            f"{seconds} s"
        )
    for _, _, entry in _measured(found, "training"):
        yield (
            f"- {entry['selections']} selections from momenta in training "
            f"({entry['model']}), {len(entry['different'])} of them different from "
            "NumPy's"
        )
    for part, name, entry in found:
        if "skipped" in entry:
            yield f"- {part}, {name}: {entry['skipped']}"


def _measured(found: Sequence[Found], part: str) -> list[Found]:
    return [each for each in found if each[0] == part and "skipped" not in each[2]]


def _label(part: str, name: str, entry: Entry) -> str:
    if part == "training":
        return f"training step, {entry['rows']} x {entry['tokens']} tokens"
    return (
        f"{entry['coordinates']:,} coordinates in {entry['tensors']} "
        f"tensors, {entry.get('passes', '-')} passes"
    )


def _rows(label: str, entry: Entry, speed: float | None) -> Iterator[str]:
    arms = entry["arms"]
    moved: dict[str, float] = {}
    if "passes" in entry:
        size = entry["coordinates"]
        moved["adamw"] = _ADAMW_BYTES * size
        moved["mofo"] = (_MOFO_BYTES + _PASS_BYTES * entry["passes"]) * size
    sorting = arms.get("lax.top_k", {}).get("seconds")
    for arm, row in arms.items():
        if "skipped" in row:
            yield from _row(label, arm, "-", row["skipped"], *["-"] * 6)
            continue
        least, median, most = row["ratio"]
        size = moved.get(arm)
        yield from _row(
            label,
            arm,
            f"{1e3 * row['seconds']:.3g}",
            f"{median:.2f}",
            f"{least:.2f} to {most:.2f}",
            f"{row['seconds'] / sorting:.3g}" if sorting else "-",
            f"{size / 1e9:.3g}" if size else "-",
            f"{size / row['seconds'] / speed:.0%}" if size and speed else "-",
            f"{row['temporary_bytes'] / 1e6:.1f}"
            if row.get("temporary_bytes")
            else "-",
            f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "-",
        )


def _row(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"
