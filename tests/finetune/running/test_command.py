"""The real command from end to end, on a tiny model; and everything it refuses."""

import json
import pathlib

import pytest
import safetensors.numpy

from examples.finetune.__main__ import main
from examples.finetune.command import options
from examples.finetune.model import pretrained
from tests.finetune import small, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small.write_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.mark.nightly
def test_a_whole_run_and_the_same_command_again(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = [*small.options(model, tmp_path / "whole"), "--export"]
    whole += [str(tmp_path / "exported")]
    status, shown, errors = small.run(*whole)
    assert status == 0, errors
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    check_whole_run(tmp_path, shown, summary)
    check_finished_run(tmp_path, whole)


def check_whole_run(path: pathlib.Path, shown: str, summary: dict) -> None:
    assert set(summary) == {"config", "base", "arms"}
    assert list(summary["arms"]) == ["adamw", "mofo"]
    retained = {"knowledge", "prose", "code"}
    assert set(summary["base"]["retention"]) == retained
    for name, arm in summary["arms"].items():
        assert set(arm["retention"]) == retained
        assert set(arm["kl_to_base"]) == {"task_prompts", "prose", "code"}
        assert all(value > 0 for value in arm["kl_to_base"].values())
        assert arm["task_loss"] < summary["base"]["task_loss"]
        assert arm["steps"] == 4
        assert arm["learning_rate"] == options.LEARNING_RATES[name]
        assert len(arm["params_checksum"]) == 64
    adamw, mofo = summary["arms"].values()
    assert mofo["moved_fraction"]["per_step"] == pytest.approx(0.15, abs=0.01)
    assert mofo["moved_fraction"]["ever"] < adamw["moved_fraction"]["ever"]
    assert adamw["tokens"] == mofo["tokens"]
    assert mofo["distance"]["total"] < adamw["distance"]["total"]
    run = path / "whole"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["arm"], row["step"]) for row in rows] == [
        (arm, step) for arm in ("adamw", "mofo") for step in (1, 2, 3, 4)
    ]
    # The same start and the same batches.
    assert rows[0]["loss"] == rows[4]["loss"]
    assert "Learned and forgotten" in shown
    report = (run / "report.md").read_text()
    assert report.count("### Sample") == 3
    for name in ("training.png", "forgetting.png"):
        assert (run / name).stat().st_size > 10_000
    exported = pretrained.open_model(str(path / "exported/mofo"))
    assert exported.config == pretrained.open_model(str(path / "exported/adamw")).config
    weights = safetensors.numpy.load_file(path / "exported/mofo/model.safetensors")
    assert weights.keys() == tiny.tensors().keys()


def check_finished_run(path: pathlib.Path, command: list[str]) -> None:
    """The same command again trains nothing and shows the same."""
    kept = sorted((path / "whole/arms").rglob("*"))
    times = {file: file.stat().st_mtime_ns for file in kept}
    summary = (path / "whole/summary.json").read_bytes()
    command = command[: command.index("--export")]
    status, shown, errors = small.run(*command)
    assert status == 0, errors
    assert "adamw is finished already" in shown
    assert {file: file.stat().st_mtime_ns for file in kept} == times
    assert (
        json.loads((path / "whole/summary.json").read_bytes())["arms"]
        == (json.loads(summary)["arms"])
    )
    status, _, errors = small.run(*command, "--steps", "5", "--eps", "1e-7")
    assert status == 2
    assert "--steps was 4 and is now 5" in errors
    assert "--eps was 1e-08 and is now 1e-07" in errors
    status, _, errors = small.run(*command, "--learning-rate", "0.5")
    assert status == 2
    assert "--learning-rate of adamw was" in errors


ROWS = {
    "good.jsonl": '{"question": "1 + 1?", "answer": "#### 2"}\n',
    "bad.jsonl": '{"question": "1 + 1?", "answer": "#### 2"}\nnot json\n',
    "long.jsonl": json.dumps({"prompt": "x" * 600, "completion": "y"}) + "\n",
    "empty.jsonl": "",
}


@pytest.fixture(scope="module")
def place(
    model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A directory of good and bad things."""
    path = tmp_path_factory.mktemp("inputs")
    for name, text in ROWS.items():
        (path / name).write_text(text)
    (path / "file").touch()
    (path / "full").mkdir()
    (path / "full" / "thesis.tex").touch()
    (path / "models" / "mofo").mkdir(parents=True)
    (path / "models" / "mofo" / "thesis.tex").touch()
    (path / "swept" / "mofo@0.0002").mkdir(parents=True)
    (path / "swept" / "mofo@0.0002" / "thesis.tex").touch()
    other = tiny.CONFIG | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    tiny.write_model(path / "gpt2", other)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--steps 0", "--steps must be >= 1"),
        ("--optimizer adam", "--optimizer must be of adamw, mofo"),
        ("--model nothing", "nothing"),
        ("--model {place}/gpt2", "gpt2"),
        ("--train-file {place}/x.jsonl --task-eval-file {place}/good.jsonl", "x.jsonl"),
        ("--task-eval-file {place}/bad.jsonl", "Line 2 of {place}/bad.jsonl"),
        ("--task-eval-file {place}/empty.jsonl", "empty.jsonl is empty"),
        ("--retention-file own={place}/bad.jsonl", "Line 2 of {place}/bad.jsonl"),
        (
            "--retention-file own={place}/long.jsonl",
            "--retention-file own has no row of at most 256",
        ),
        ("--retention-file own", "--retention-file must be NAME=PATH"),
        ("--sequence-length 513", "--sequence-length must be at most 512"),
        ("--max-new-tokens 257", "--max-new-tokens must be at most 256"),
        ("--mesh fsdp=3", "fsdp=3"),
        ("--mesh rows=8", "unknown axis 'rows'"),
        ("--output {place}/file", "is a file"),
        ("--output {place}/file/run", "is a file"),
        ("--output {place}/full", "no run directory"),
        ("--output /proc/run", "/proc/run"),
        ("--export {place}/models", "models/mofo"),
        (
            "--export {place}/swept --learning-rate 1e-4 2e-4",
            "swept/mofo@0.0002",
        ),
        ("--export {place}/file", "file"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    words: str,
    expected: str,
    place: pathlib.Path,
    model: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(place.rglob("*"))
    output = tmp_path / "run"
    given = [word.format(place=place) for word in words.split()]
    assert main([*small.options(model, output), *given]) == 2
    shown, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(".")
    assert expected.format(place=place) in line
    assert "Loading" not in shown, "the weights were read before all was checked"
    assert sorted(place.rglob("*")) == before
    assert not output.exists()


def test_bad_input_in_a_process_of_its_own() -> None:
    status, shown, errors = small.run("--steps", "many")
    assert (status, shown) == (2, "")
    assert "--steps" in errors
    assert "Traceback" not in errors
