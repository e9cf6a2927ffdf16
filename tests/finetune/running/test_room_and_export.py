"""What a run checks and asks for first: room on the disk, exports, model, texts."""

import json
import pathlib
from typing import Any
from unittest import mock

import jax
import pytest
import safetensors.numpy

from examples.finetune.command.config import Arm, Config, parse
from examples.finetune.model import parameters, pretrained, sharding
from examples.finetune.running import checks, inputs
from examples.finetune.running.known import Known
from examples.finetune.training import optimizers, own_text, step
from tests.finetune import small, tiny


class Asked(Exception):
    pass


def needed(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> dict[pathlib.Path, int]:
    """The bytes that a run with two optimizers asks for, by directory."""

    def check_room(needed: dict[pathlib.Path, int]) -> None:
        raise Asked(needed)

    monkeypatch.setattr(checks, "check_room", check_room)
    model = small.write_model(run.parent / "model")
    given = [*small.options(model, run), "--export", str(run.parent / "exported")]
    with pytest.raises(Asked) as asked:
        inputs.find(parse([*given, *words]))
    return asked.value.args[0]


def test_every_learning_rate_needs_its_own_room(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, exported = tmp_path / "run", tmp_path / "exported"
    once = needed(run, monkeypatch)
    swept = needed(run, monkeypatch, "--learning-rate", "1e-4", "2e-4")
    assert swept[exported] == 2 * once[exported]
    # Two checkpoints for each arm, and one more for all.
    one = once[run] // 5
    assert once[run] == 5 * one
    assert swept[run] == 9 * one
    (run / "arms/adamw@0.0001/checkpoints/1").mkdir(parents=True)
    resumed = needed(run, monkeypatch, "--learning-rate", "1e-4", "2e-4")
    assert resumed[run] == 7 * one
    assert resumed[exported] == swept[exported]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_room_is_that_of_the_checkpoints(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    words = "--param-dtype", dtype
    asked = needed(tmp_path / "run", monkeypatch, *words)[tmp_path / "run"]
    config = parse([*small.options(tmp_path / "model", tmp_path / "run"), *words])
    source = pretrained.open_model(str(tmp_path / "model"))
    mesh = sharding.make_mesh(config.mesh)
    model = pretrained.build(source, param_dtype=dtype, mesh=mesh)
    _, params = parameters.split(model)
    state = step.init_state(optimizers.make("mofo", config, 1e-4), params)
    bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    # Two checkpoints for each arm, and one more for all.
    assert asked == pytest.approx(5 * bytes, rel=1e-3)


def test_an_export_within_the_run_directory_does_not_claim_it(
    tmp_path: pathlib.Path,
) -> None:
    model, run = small.write_model(tmp_path / "model"), tmp_path / "run"
    given = [*small.options(model, run), "--export", str(run / "exported")]
    inputs.find(parse(given))
    assert not run.exists()


def test_another_model_in_the_same_directory_is_another_setting(
    tmp_path: pathlib.Path,
) -> None:
    model = small.write_model(tmp_path / "model")
    given = parse(small.options(model, tmp_path / "run"))
    before = inputs.find(given).settings
    assert inputs.find(given).settings == before
    weights = {name: 2 * tensor for name, tensor in tiny.tensors().items()}
    safetensors.numpy.save_file(weights, model / "model.safetensors")
    after = inputs.find(given).settings
    assert {name for name in after if after[name] != before[name]} == {
        "the content of --model"
    }


def test_replayed_texts_that_follow_from_the_mesh_are_a_setting(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.write_model(tmp_path / "model")
    words = [*small.options(model, tmp_path / "run"), "--batch-size", "4"]
    found = []
    for shards in (1, 4):
        monkeypatch.setattr(sharding, "row_shards", lambda mesh, n=shards: n)
        given = parse([*words, "--replay", "6"])
        found.append(inputs.find(given).settings["--replay-batch-size"])
    assert found == [2, 4]
    assert inputs.find(parse(words)).settings["--replay-batch-size"] == 0


@pytest.mark.parametrize(("most", "warns"), [(3, True), (9, False), (0, False)])
def test_answers_that_would_be_cut_are_reported(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, most: int, warns: bool
) -> None:
    rows = [{"question": "Which?", "answer": text} for text in ("no", "yes, that")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = small.write_model(tmp_path / "model")
    words = [*small.options(model, tmp_path / "run"), "--max-new-tokens", str(most)]
    files = ["--train-file", str(path), "--task-eval-file", str(path)]
    inputs.find(parse([*words, *files]))
    said = f"1 of 2 right answers have more than --max-new-tokens {most} tokens"
    assert (said in caplog.text) == warns


def test_the_texts_suffice_for_arms_that_are_added_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kept(run: Any, writer: Any, count: int, measured: Any) -> list[own_text.Text]:
        asked.append(count)
        return []

    asked: list[int] = []
    monkeypatch.setattr(own_text, "kept", kept)
    setup: Any = mock.MagicMock()
    setup.config = Config(replay=12, own_texts=8)
    for name in ("adamw", "inverse_covariance", "ewc"):
        Known(setup, None, [Arm(name, name, 1e-3, replay=False)])
    assert asked == [12, 12]
