"""The small examples: a shortened quick start, and the notebook."""

import pathlib
import re
from typing import Any

import nbclient
import nbformat
import pytest

from examples import quickstart

NOTEBOOK = pathlib.Path(quickstart.__file__).parent / "getting_started.ipynb"


def test_quickstart_compares_the_optimizers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "STEPS", 4)
    quickstart.main()
    lines = capsys.readouterr().out.splitlines()
    names = ["start", "optax.adamw", "mofo", "inverse covariance"]
    assert [line.split("  ")[0] for line in lines] == names
    assert len({line.partition("task: ")[2] for line in lines}) == len(names)
    assert all("task: " in line and "earlier task: " in line for line in lines)


@pytest.mark.nightly
def test_quickstart_shows_that_inverse_covariances_spare_the_earlier_task(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quickstart.main()
    shown = capsys.readouterr().out
    learned, forgotten = (
        [float(number) for number in re.findall(rf"  {task}: (\S+)", shown)]
        for task in ("task", "earlier task")
    )
    assert max(learned) < 0.02
    start, adamw, _, inverse = forgotten
    assert start < 0.02 < 0.2 < adamw
    assert inverse < adamw / 4


def outputs(notebook: Any) -> list[tuple[str, ...]]:
    """Returns the outputs of each cell: text without digits, or the types of data."""
    return [
        tuple(
            "".join(c for c in output["text"] if not c.isdigit())
            if "text" in output
            else " ".join(sorted(output["data"]))
            for output in cell["outputs"]
        )
        for cell in notebook.cells
        if cell.get("outputs")
    ]


@pytest.mark.nightly
def test_the_notebook_reproduces_its_stored_outputs() -> None:
    def numbers(notebook: Any) -> list[float]:
        given = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        printed = " ".join(output.get("text", "") for output in given)
        return [float(number) for number in re.findall(r"\d+\.\d+", printed)]

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)
    # Two lines of text and two pictures.
    assert len(stored) == 4
    assert sum("image/png" in shown for cell in stored for shown in cell) == 2
    printed = numbers(notebook)
    assert len(printed) == 8
    nbclient.NotebookClient(notebook, timeout=600).execute()
    assert outputs(notebook) == stored
    # Thousands of steps differ a little between versions and machines.
    assert numbers(notebook) == pytest.approx(printed, rel=0.3, abs=2e-3)
