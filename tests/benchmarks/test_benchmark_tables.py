"""The benchmark's stored results, their tables and their picture."""

import io
import pathlib
from typing import Any

import jax
import pytest
import rich.console

from examples.benchmarks import picture, tables
from examples.benchmarks.results import Results, file_name

PAGE = pathlib.Path(picture.__file__).with_name("README.md")
ROW = {"seconds": 0.05, "rounds": 9, "ratio": [1.5, 2.25, 3.0], "compile_seconds": 1.5}
SAME = {"seconds": 0.02, "rounds": 9, "ratio": [1.0, 1.0, 1.0]}
TIMED = {"arms": {"adamw": SAME, "mofo": ROW, "jnp.sort": {"skipped": "left out: x"}}}
BUILT = {
    "temporary_share": 0.5,
    "compile_seconds": 2.0,
    "lowering_seconds": 0.5,
    "all_reduce": 3,
}
SENT = {
    "argument_bytes": 4e6,
    "temporary_bytes": 3e6,
    "collectives": 9,
    "collectives_in_loops": 5,
    "collective_bytes": 2.5e6,
    "collective_bytes_in_loops": 1e6,
}
STORED = {
    "steps": {"small, float32": TIMED, "llama, float32": {"skipped": "too large"}},
    "pytorch": {"small": {**TIMED, "mofo_beside_topk": [0.04, 0.05, 0.06]}},
    "passes": {
        "8 x 128 tokens": {
            **TIMED,
            "passes": {"10": {"float32": {"kernels": {"most": 4, "mean": 2.75}}}},
        }
    },
    "compiled": {
        "v5p:4x4x4, bare step": {
            "tensors": 291,
            "programs": {
                "adamw": BUILT,
                "mofo": {**BUILT, "temporary_share": 0.625, "compile_seconds": 5.0},
            },
        },
        "v5p:4x4x4, pod step": {"programs": {"mofo": BUILT | SENT}},
        "v5p:4x4x4, inverse covariance, 7B": {
            "programs": {"blocks": BUILT | SENT | {"collectives": 20}}
        },
    },
}


def test_tables_show_what_is_stored() -> None:
    console = rich.console.Console(file=io.StringIO())
    tables.show(STORED, console)
    shown = console.file.getvalue()
    lines = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines()]
    cells = [line[1:-1] for line in lines if len(line) > 2]
    times = ["50.0", "2.25", "1.50 to 3.00", "9", "-", "1.5"]
    assert cells.count(["", "mofo", *times]) == 3
    assert ["8 x 128 tokens", "10", "float32", "4, 2.8", "-", "-", "-"] in cells
    assert ["", "", "difference", "0.1250", "0", *"---", "2.50x", "1.00x"] in cells
    sent = ["5", "1.50", "1.00", "2"]
    for row in (
        ["v5p:4x4x4, pod step", "mofo", "4.0", "3.0", "9", *sent],
        ["v5p:4x4x4, inverse covariance, 7B", "blocks", "4.0", "3.0", "20", *sent],
    ):
        assert cells.count(row) == 1
    assert "0.050" in shown
    assert "0.040 to 0.060" in shown
    assert "steps, llama, float32: too large" in shown


def test_the_picture_shows_what_is_stored(tmp_path: pathlib.Path) -> None:
    bar = picture.Bar("mofo", 1.5, 2.25, 3.0)
    assert picture.bars(STORED) == {
        "small, float32": [bar],
        "beside PyTorch, small": [bar],
        "training step, 8 x 128 tokens": [bar],
    }
    path = tmp_path / "cpu.png"
    assert not picture.draw(path, {"steps": {"small": {"skipped": "x"}}}, "cpu")
    assert not path.exists()
    assert picture.draw(path, STORED, "cpu")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["cpu.png"]


def test_results_are_merged(tmp_path: pathlib.Path) -> None:
    one, other = (Results(tmp_path / "results", "TPU v5 lite") for _ in range(2))
    one.put("steps", "small", {"arms": {"mofo": 1}})
    other.put("pytorch", "small", {"arms": {}})
    one.put("steps", "matrix", {"skipped": "too large"})
    one.put("steps", "small", {"arms": {"mofo": 2}})
    other.put("steps", "small", {"skipped": "not here"})
    parts = Results(tmp_path / "results", "TPU v5 lite").read()
    assert parts["steps"]["small"]["arms"] == {"mofo": 2}
    assert parts["steps"]["matrix"]["skipped"] == "too large"
    assert parts["pytorch"]["small"]["arms"] == {}
    environment = parts["steps"]["small"]["environment"]
    assert environment["jax"] == jax.__version__
    assert environment["cores"] >= 1
    assert [file.name for file in (tmp_path / "results").iterdir()] == [
        "tpu-v5-lite.json"
    ]


def test_a_measurement_replaces_the_reason_for_skipping_it(
    tmp_path: pathlib.Path,
) -> None:
    results = Results(tmp_path, "cpu")
    results.put("compiled", "v5e:2x4", {"skipped": "needs libtpu"})
    assert list(results.read()["compiled"]) == ["v5e:2x4"]
    results.put("compiled", "v5e:2x4, bare step", {"programs": {}})
    results.put("compiled", "v5e:2x4", {"skipped": "needs libtpu"})
    assert list(results.read()["compiled"]) == ["v5e:2x4, bare step"]


def test_reasons_that_replace_no_measurement_are_kept_apart(
    tmp_path: pathlib.Path,
) -> None:
    results = Results(tmp_path, "cpu")
    results.put("compiled", "v5e:2x4, bare step", {"programs": {}})
    results.put("compiled", "v5e:2x4, bare step, whole", {"programs": {}})
    assert len(results.read()["compiled"]) == 2
    results.put("pytorch", "small", {"skipped": "needs torch"})
    assert not results.kept
    results.put("compiled", "v5e:2x4", {"skipped": "needs libtpu"})
    assert results.kept == [("compiled", "v5e:2x4", {"skipped": "needs libtpu"})]


def test_files_are_named_by_device() -> None:
    assert file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert file_name("cpu") == "cpu"


def page_table(name: str) -> list[list[str]]:
    """Returns the rows of a marked table of the benchmarks' page."""
    text = PAGE.read_text().partition(f"<!-- {name} -->\n")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def stored() -> dict[str, Any]:
    """Returns the stored entries of compiled steps, by case."""
    return Results(PAGE.parent / "results", "cpu").read()["compiled"]


def test_the_page_has_the_stored_figures_of_compiled_steps() -> None:
    expected = []
    for case, entry in stored().items():
        programs = entry["programs"]
        if {*programs} == {"adamw", "mofo"} and ", pod " not in case:
            share = f"{programs['adamw']['temporary_share']:.4f}"
            figures = tables.beyond(programs)[:-1]
            expected.append([case, str(entry["tensors"]), share, *figures])
    assert page_table("compiled") == sorted(expected)


def test_the_page_has_the_stored_figures_of_pods() -> None:
    expected = []
    for case, entry in stored().items():
        for name, row in entry["programs"].items() if ", pod " in case else ():
            looped = row["collective_bytes_in_loops"]
            outside = row["collective_bytes"] - looped
            memory = [row["argument_bytes"], row["temporary_bytes"]]
            expected.append(
                [
                    case if name == "adamw" else "",
                    name,
                    *(f"{size / 1e6:.1f}" for size in memory),
                    str(row["collectives"]),
                    str(row["collectives_in_loops"]),
                    *(f"{size / 1e6:.2f}" for size in (outside, looped)),
                    f"{row['compile_seconds']:.0f}",
                ]
            )
    assert page_table("pod") == expected


@pytest.mark.parametrize("training", [False, True])
def test_the_page_has_the_stored_figures_of_inverse_covariances(training: bool) -> None:
    kind = "training step, Llama 7B" if training else "Llama 7B"
    expected = []
    for topology in ("h100:1x8", "v5p:4x4x4"):
        entry = stored()[f"{topology}, inverse covariance, {kind}"]
        for name, row in entry["programs"].items():
            sizes = [row["argument_bytes"], row["temporary_bytes"]]
            shares = [f"{size / entry['parameter_bytes']:.3f}" for size in sizes]
            looped = row["collective_bytes_in_loops"]
            sent = [looped, row["collective_bytes"] - looped]
            moved = [] if training else [f"{size / 1e6:.1f}" for size in sent]
            if training or name != "adamw":
                expected.append([topology, *shares, str(row["collectives"]), *moved])
    rows = page_table("inverse in training" if training else "inverse")
    assert [[row[0], *row[2 : 7 - 2 * training]] for row in rows] == expected
