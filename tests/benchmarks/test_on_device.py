"""The command that checks and measures a GPU or TPU host, in miniature on a CPU."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mofo_jax
from examples.benchmarks import device_page, fine_tuning, on_device, selections
from examples.benchmarks.results import Found, file_name
from examples.benchmarks.trees import LLAMA_7B, TREES, largest_scanned, scanned
from mofo_jax._selection import search
from tests import helpers

ONE = {"heads": selections.Tensor((2, 5, 3, 8), (0, 2))}


@pytest.mark.nightly
def test_the_command_in_miniature(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Compiling every form here would take long; each has a test below.
    monkeypatch.setattr(selections, "FORMS", (selections.CHOSEN,))
    monkeypatch.setattr(selections, "SMALL", ONE)
    with pytest.raises(SystemExit) as stop:
        on_device.main(["--miniature", "--output", str(tmp_path)])
    assert not stop.value.code
    name = file_name(jax.devices()[0].device_kind)
    parts = json.loads((tmp_path / f"{name}.json").read_text())["parts"]
    assert list(parts["selections"]) == ["chosen by platform"]
    count = 0
    for entry in [*parts["selections"].values(), parts["training"]["step"]]:
        assert entry["different"] == []
        count += entry["selections"]
    assert parts["bandwidth"]["copy"]["bytes"] == 2 * on_device.MINIATURE.copied
    steps = parts["steps"]["tiny, float32"]
    assert list(steps["arms"]) == ["adamw", "mofo", "lax.top_k"]
    assert 1 <= steps["passes"] <= 31
    assert parts["training"]["step"]["instead"]
    page = (tmp_path / f"{name}.md").read_text()
    printed = capsys.readouterr().out
    assert page in printed
    sentence = f"All checks held: {count:,} selections are equal to NumPy's."
    assert printed.splitlines()[-1] == sentence
    assert sentence in page
    # AdamW reads and writes 28 bytes for each of 53 coordinates.
    row = next(line for line in page.splitlines() if "| adamw |" in line)
    assert f"| {28 * 53 / 1e9:.3g} |" in row


@pytest.mark.parametrize("form", selections.FORMS[1:])
def test_each_form_is_traced_and_selects_as_numpy_does(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    moments = search.moments

    def spy(tensor: Any, form: Any) -> Any:
        traced.append(form)
        return moments(tensor, form)

    monkeypatch.setattr(search, "moments", spy)
    trials = [*selections.make_trials(ONE)]
    entry = selections.measure(form, ONE, trials)
    assert set(traced) == {form}
    kinds, fractions = len(selections.KINDS), len(selections.FRACTIONS)
    assert entry["selections"] == kinds * fractions * len(selections.TIES)
    assert entry["different"] == []


def test_numbers_of_every_kind_and_dtype_are_selected() -> None:
    for kind, _, _, expected in selections.make_trials(selections.LARGE):
        for name, mask in expected["all"].items():
            assert mask.any(), (kind, name)


def test_a_wrong_selection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = functools.partial(mofo_jax.momentum_filter)

    def larger(*args: Any, update_fraction: jax.Array, **options: Any) -> Any:
        fraction = jnp.minimum(2 * update_fraction, 1)
        return wrong(*args, update_fraction=fraction, **options)

    monkeypatch.setattr(mofo_jax, "momentum_filter", larger)
    trials = [*selections.make_trials(ONE)]
    entry = selections.measure(selections.CHOSEN, ONE, trials)
    assert "heads, normal, 0.15, all" in entry["different"]
    found = Found("selections", selections.CHOSEN, entry)
    held, sentence = device_page.verdict([found])
    assert not held
    assert sentence.startswith(f"Checks failed: {len(entry['different'])} of 28 ")


def test_the_reference_is_the_tests_own() -> None:
    tensors = {
        **selections.SMALL,
        "float16": selections.Tensor((3, 9, 7), (1,), "float16"),
        "last": selections.Tensor((4, 6), (1,)),
    }
    for _, fraction, tree, expected in selections.make_trials(tensors):
        for name, x in tree.items():
            axes = tensors[name].block_axes
            for ties in selections.TIES:
                share = float(np.float32(fraction))
                mask = helpers.selected(x, share, axes, ties)
                mask &= helpers.patterns(x) != 0
                np.testing.assert_array_equal(expected[ties][name], mask)


def test_coordinates_that_moved_otherwise_are_found() -> None:
    momentum = np.array([3.0, -2.0, 1.0, 0.0], np.float32)
    moved = {"right": np.array([1, 1, 0, 0], bool), "wrong": np.array([1, 0, 1, 0])}
    momenta, axes = dict.fromkeys(moved, momentum), dict.fromkeys(moved, ())
    assert selections.differences(moved, momenta, axes, 0.5) == ["wrong"]


def test_nothing_is_begun_that_would_not_end_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def case(name: str, seconds: float) -> on_device.Case:
        def measure() -> dict[str, Any]:
            now[0] += seconds
            return {"seconds": seconds}

        return on_device.Case("steps", name, measure)

    times = {"first": 100.0, "second": 150.0, "third": 1.0}
    monkeypatch.setattr(on_device.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        on_device, "cases", lambda options: [case(*each) for each in times.items()]
    )
    stored = []
    found = on_device.measure(on_device.Options(), lambda *entry: stored.append(entry))
    assert [tuple(each) for each in found] == stored
    assert [entry for *_, entry in found[:2]] == [{"seconds": 100}, {"seconds": 150}]
    assert found[2].entry["skipped"].startswith("left out: the limit is 6 minutes")


def test_a_case_that_fails_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails() -> dict[str, Any]:
        raise IndivisibleRowsError("8 rows\nin 3 parts")

    copy = {"bytes": 2e9, "seconds": 0.5}
    made = [
        on_device.Case("training", "step", fails),
        on_device.Case("bandwidth", "copy", lambda: copy),
    ]
    monkeypatch.setattr(on_device, "cases", lambda options: made)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        on_device.main(["--miniature"])
    assert stop.value.code == 1
    (page,) = (tmp_path / "runs" / "on_device").glob("*.md")
    assert "No checks were made: training, step." in page.read_text()
    assert "4 GB/s" in page.read_text()
    printed = capsys.readouterr()
    assert "training, step: failed with IndivisibleRowsError: 8 rows\n" in printed.out
    assert "Traceback" in printed.err


class IndivisibleRowsError(ValueError):
    """An error that no case expects."""


@pytest.mark.parametrize(("devices", "rows"), [(1, 8), (3, 9), (6, 12), (16, 16)])
def test_every_device_has_as_many_rows(
    devices: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning.sharding, "row_shards", lambda mesh: devices)
    problem = fine_tuning.random_problem(on_device.MINIATURE.llama, 8)
    assert problem.config.batch_size == rows
    assert next(problem.batches)["tokens"].shape == (rows, 8)


def test_checks_that_were_not_made_are_named() -> None:
    entry = {"selections": 1200, "different": []}
    held, sentence = device_page.verdict(
        [
            Found("selections", "rows", entry),
            Found("selections", "lanes", {"skipped": "the runtime refused it"}),
            Found("steps", "tiny", {"skipped": "no memory"}),
        ]
    )
    assert held
    assert sentence == (
        "All checks that were made held: 1,200 selections are equal to NumPy's. "
        "Not made: selections, lanes."
    )


def test_a_model_that_cannot_be_fetched_gives_way_to_a_random_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(model: str, tokens: int) -> Any:
        raise on_device.InputError("the model cannot be fetched")

    asked = []

    def random_problem(*arguments: Any) -> Any:
        asked.append(arguments)
        raise on_device.InputError("seen")

    monkeypatch.setattr(fine_tuning, "pretrained_problem", unreachable)
    monkeypatch.setattr(fine_tuning, "random_problem", random_problem)
    with pytest.raises(on_device.InputError, match="seen"):
        on_device.training(on_device.Options(), on_device.MINIATURE)
    with pytest.raises(on_device.InputError, match="cannot be fetched"):
        on_device.training(on_device.Options(model="mine"), on_device.MINIATURE)
    assert asked == [(on_device.MINIATURE.llama, on_device.MINIATURE.tokens)]


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_the_largest_tree_is_as_large_as_it_may_be(layers: int) -> None:
    config = dataclasses.replace(LLAMA_7B, num_layers=layers)
    tree = scanned(config)
    assert largest_scanned(LLAMA_7B, tree.coordinates) == tree
    if layers > 1:
        smaller = largest_scanned(LLAMA_7B, tree.coordinates - 1)
        assert smaller.coordinates < tree.coordinates
    assert largest_scanned(LLAMA_7B, 0) == scanned(
        dataclasses.replace(LLAMA_7B, num_layers=1)
    )


def test_the_trees_have_the_sizes_that_the_page_promises() -> None:
    sizes = [tree.coordinates / 1e9 for tree in on_device.FULL.trees.values()]
    np.testing.assert_allclose(sizes, [0.1, 1.2], rtol=0.4)
    assert on_device.MINIATURE.trees == {"tiny": TREES["tiny"]}
