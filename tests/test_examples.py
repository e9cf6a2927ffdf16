"""The small examples: a shortened quick start, and the notebook."""

import pathlib
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
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)
    # Two lines of text and two pictures.
    assert len(stored) == 4
    assert sum("image/png" in shown for cell in stored for shown in cell) == 2
    nbclient.NotebookClient(notebook, timeout=600).execute()
    assert outputs(notebook) == stored
