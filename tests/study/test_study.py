"""A study of the smallest size that is killed and continued, and its rows."""

import dataclasses
import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from examples.finetune.evaluation import generate
from examples.finetune.model.attention import causal_mask
from examples.finetune.system.files import read_json_lines
from examples.finetune.training import own_text
from examples.study import __main__ as command
from examples.study import chat, commands, measuring, own_texts, plan, rows, study
from examples.study.methods import OwnTexts
from examples.study.plan import Cell, Run, Step
from examples.study.training import Trainer

TASK = "docstrings"


@pytest.mark.nightly
def test_a_killed_study_continues(
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    # One rate of each cell, which does not depend on earlier results.
    cells = [Cell(TASK, name, 2, 0) for name in ("adamw", "adamw_frozen", "mofo")]
    wanted = [Run(TASK, plan.START), *(cell.at(2e-3) for cell in cells)]
    step = Step("all", cells)

    def missing(losses: plan.Losses, plan: Any) -> Any:
        return ((step, run) for run in wanted if run not in losses)

    monkeypatch.setattr(commands, "missing", missing)
    trained: list[tuple[str, float]] = []
    train, add = Trainer.train, rows.add

    def counted(self: Trainer, optimizer: str, config: Any, peak: float, *rest: Any):
        trained.append((optimizer, peak))
        return train(self, optimizer, config, peak, *rest)

    def add_and_kill(path: pathlib.Path, row: rows.Row) -> None:
        add(path, row)
        if rows.run_of(row).method == "adamw":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train", counted)
    monkeypatch.setattr(rows, "add", add_and_kill)
    options = [
        *("--model", str(tiny_model), "--budget", "smallest"),
        *("--output", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")),
    ]
    handler = signal.getsignal(signal.SIGTERM)
    assert command.main(options) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    assert "the same command repeats the run" in capsys.readouterr().err
    (file,) = (tmp_path / "results").rglob("rows.jsonl")
    assert file.parts[-3:-1] == (tiny_model.name, "smallest-generated")
    before = file.read_text().splitlines()
    assert [str(rows.run_of(row)) for row in rows.read(file)] == [
        f"{TASK}/start",
        f"{TASK}/adamw/2/0/0.002",
    ]

    monkeypatch.setattr(rows, "add", add)
    assert command.main(options) == 0
    # The model was healed only once.
    assert trained == [("adamw", 5e-5), *[("adamw", 2e-3)] * 2, ("mofo", 2e-3)]
    assert file.read_text().splitlines()[: len(before)] == before
    assert (file.parent / "tables.md").exists()
    _check_rows(rows.read(file), file)

    assert command.main(options) == 0
    assert len(trained) == 4
    capsys.readouterr()
    assert command.main([*options, "--only", f"{TASK}/mofo/2/0/0.002"]) == 0
    told = capsys.readouterr().out.splitlines()
    (prose,) = (line for line in told if line.startswith("KL, prose"))
    kept, anew = (
        float(part.split()[0]) for part in prose.partition(": ")[2].split(",")
    )
    assert kept == pytest.approx(anew, rel=1e-3)
    assert len(rows.read(file)) == 4
    # Without a row to compare with, none is stored, not even with a new file.
    elsewhere = ["--output", str(tmp_path / "new")]
    for more in ([], elsewhere):
        other = [*options, *more, "--only", f"{TASK}/mofo/2/0/0.004"]
        assert command.main(other) == 0
        told = capsys.readouterr().out
        assert "has no row of" in told and "repeated" in told and "stored" not in told
    assert len(rows.read(file)) == 4
    assert not list((tmp_path / "new").rglob("rows.jsonl"))
    for wrong in ("nothing", f"{TASK}/nothing/2/0/0.002", f"{TASK}/start"):
        assert command.main([*options, "--only", wrong]) == 2
        assert "--only must name a run as the tables do" in capsys.readouterr().err


def _check_rows(found: list[rows.Row], file: pathlib.Path) -> None:
    start, *others = found
    texts = {TASK, "prose", "code", "chat"}
    assert set(start["sets"]) == set(start["counts"]) == texts
    for row in others:
        for name, measured in row["sets"].items():
            assert len(measured["losses"]) == len(start["sets"][name]["losses"])
            assert min(measured["divergences"]) > 0
        assert len(row["margins"]) == len(start["margins"])
        assert row["key"]["protocol"] == study.protocol()
    whole, frozen, mofo = (row["moved"] for row in others)
    assert mofo < 0.5 < whole
    assert 0 < frozen < whole
    # Only answers count for the chats' divergence, only prompts for the task's.
    answers = read_json_lines(file.with_name("chat.jsonl"))
    lengths = [len(row["answer"]) for row in answers]
    counts = start["counts"]
    assert counts["chat"]["divergences"] == counts["chat"]["losses"] == lengths
    losses, prompts = (counts[TASK][kind] for kind in measuring.KINDS)
    assert min(losses) > 0 and min(prompts) > 0


@pytest.mark.nightly
def test_frozen_parameters_do_not_move_and_pruned_ones_return(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path
):
    from examples.study.options import Options

    def up(params: Any) -> np.ndarray:
        return np.asarray(params["layers"]["mlp"]["up"]["kernel"], np.float64)

    options = Options(model=str(tiny_model), budget="smallest", output=tmp_path)
    made = study.Study(options, study.budget_of(options))
    start = made.trainer.quantized
    made.__dict__["start"] = start  # Instead of the healed one.
    after = made.train(Run(TASK, "adamw_frozen", 2, 0, 1e-3)).params
    np.testing.assert_array_equal(
        after["embed"]["embedding"], start["embed"]["embedding"]
    )
    moved = up(after) - up(start)
    # Adam's first steps are as large as the rate.
    assert 5e-4 < np.abs(moved).max() < 3e-3
    # Pruning undoes the half of the changes with lower scores.
    before = up(start)
    whole, pruned = (
        up(made.train(Run(TASK, name, 2, 0, 1e-3)).params)
        for name in ("adamw", "pruned_0.5")
    )
    kept = pruned != before
    np.testing.assert_array_equal(pruned[kept], whole[kept])
    change, size = np.abs(whole - before), np.abs(before)
    scores = change - size.mean(axis=(1, 2), keepdims=True) * change / size
    for score, layer in zip(scores, kept, strict=True):
        assert score[~layer].max() <= score[layer].min() + 1e-6
        assert layer.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.nightly
def test_replay_keeps_the_predictions_of_the_start_on_its_own_texts(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path
):
    options = study.Options(model=str(tiny_model), budget="smallest", output=tmp_path)
    made = study.Study(options, study.budget_of(options))
    trainer = made.trainer
    made.__dict__["start"] = trainer.quantized
    texts = made.written(OwnTexts())
    batch = trainer.place(own_text.batch(texts, max(len(text.ids) for text in texts)))

    def predicted(params: Any) -> np.ndarray:
        model = nnx.merge(trainer.graph, params)
        mask = causal_mask(batch["segments"])
        logits = model(batch["tokens"], batch["positions"], mask)
        return np.asarray(jax.nn.log_softmax(logits), np.float64)

    def trained(method: str, steps: int = 9) -> Any:
        return made.train(Run(TASK, method, steps, 0, 3e-3)).params

    before, real = predicted(trainer.begin(trainer.quantized)), batch["segments"] != 0

    def drift(params: Any) -> float:
        change = np.exp(before) * (before - predicted(params))
        return float(change.sum(axis=-1).mean(where=np.asarray(real)))

    plain, every = trained("adamw"), trained("replay")
    assert drift(every) < 0.8 * drift(plain)
    # The first nine steps have no replay, the tenth has.
    jax.tree.map(np.testing.assert_array_equal, trained("replay_tenth"), plain)
    assert drift(trained("replay_tenth", 10)) != drift(trained("adamw", 10))


@pytest.mark.nightly
def test_own_texts_have_the_wanted_kinds_and_temperature(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    options = study.Options(model=str(tiny_model), budget="smallest", output=tmp_path)
    made = study.Study(options, study.budget_of(options))
    trainer = made.trainer
    start = made.__dict__["start"] = trainer.quantized
    monkeypatch.setattr(own_texts, "ROWS", 3)

    def write(count: int, *kinds: str, temperature: float = 1.0) -> list[own_text.Text]:
        wanted = OwnTexts(count, kinds or OwnTexts.kinds, temperature)
        return own_texts.write(trainer, start, wanted)

    texts = write(7, "nothing")
    assert [text.given for text in texts] == [1] * 7
    # No draw is used twice.
    assert len({tuple(text.ids) for text in texts}) == 7
    message = chat.in_template(trainer, "Tell me about the history of your city.")[:3]
    assert all(text.ids[:3] == message for text in write(4, "message"))
    assert all(text.ids[:3] != message for text in write(4, "opening"))
    assert [text.given == 1 for text in write(4)] == [True, False, False, True]
    # The rows may have to be divided over devices.
    prompts = [text.ids[: text.given] for text in texts]
    given = trainer, start, prompts, 5, 0
    alone = chat.written(*given, temperature=1e-6)
    monkeypatch.setattr(chat, "row_shards", lambda mesh: 4)
    assert chat.written(*given, temperature=1e-6) == alone
    # At a low temperature, every token is the likeliest one.
    cold = write(2, "opening", temperature=1e-6)
    greedy = generate.answers(
        trainer.graph,
        trainer.begin(start),
        [text.ids[: text.given] for text in cold],
        trainer.place,
        batch_size=2,
        max_new_tokens=own_texts.NEW_TOKENS,
        stop_ids=trainer.source.tokenizer.stop_ids,
        keep_stop=True,
    )
    assert [text.ids[text.given :] for text in cold] == greedy


@pytest.mark.nightly
def test_larger_batches_and_longer_runs_see_more_rows(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path
):
    from examples.study.options import Options

    options = Options(model=str(tiny_model), budget="smallest", output=tmp_path)
    made = study.Study(options, study.budget_of(options))
    made.__dict__["start"] = made.trainer.quantized
    tokens = [
        made.train(Run(TASK, name, 2, 0, 1e-3)).tokens
        for name in ("adamw", "adamw_batch", "adamw_replay_time")
    ]
    assert 3 * tokens[0] < tokens[1] < 5 * tokens[0]
    # Three steps instead of two.
    assert 1.2 * tokens[0] < tokens[2] < 1.8 * tokens[0]


# Both read 320 batches of the usual size.
@pytest.mark.parametrize(
    ("method", "steps"), [("adamw_rule_time", 240), ("adamw_batch", 80)]
)
def test_no_run_begins_that_would_exceed_the_hours(
    method: str,
    steps: int,
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = Run(TASK, method, steps, 0, 1e-4)
    monkeypatch.setattr(
        commands, "missing", lambda losses, plan: iter([(Step("long", []), run)])
    )
    # 24 batches took 48 of 60 seconds, so 320 take 640 of 652.
    row = {"key": {"run": f"{TASK}/adamw/24/0/0.0001"}, "seconds": 60, "sets": {}}
    monkeypatch.setattr(rows, "read", lambda file: [row | {"seconds_per_step": 2.0}])
    monkeypatch.setattr(study.Study, "losses", lambda self: {})

    def begin(self: study.Study, run: Run) -> None:
        raise InterruptedError(str(run))

    monkeypatch.setattr(study.Study, "do", begin)
    options = study.Options(
        model=str(tiny_model), budget="smallest", output=tmp_path, hours=651 / 3600
    )
    assert commands.run(options).name == "rows.jsonl"
    assert f"The hours are over before {run} (long)" in capsys.readouterr().out
    # More by enough for reading the model.
    with pytest.raises(InterruptedError, match=str(run)):
        commands.run(dataclasses.replace(options, hours=1))
