"""Tasks in the harness, against our own measurements of the same items."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tokenizers

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

import datasets  # pyright: ignore[reportMissingImports]
import huggingface_hub
from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

from examples.evaluation import run
from examples.evaluation.__main__ import main
from examples.evaluation.batching import Placed
from examples.evaluation.harness import NnxLlama
from examples.evaluation.tasks import rows
from examples.finetune.data import word_problems
from examples.finetune.data.encoding import encode_rows
from examples.finetune.data.retention import knowledge_questions
from examples.finetune.evaluation import choices, evaluate, generate
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.tokenizer import Tokenizer
from tests.finetune import small

ITEMS = 24


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Sets HF_HUB_OFFLINE=1, with an empty cache, in the repository's directory."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(small.ROOT)


def evaluated(
    model: Decoder, tokenizer: Tokenizer, task: str, limit: int, **options: Any
) -> Any:
    tasks, manager = run.load_tasks((task,))
    return simple_evaluate(
        model=NnxLlama(model, tokenizer, name="tiny", batch_size=8),
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        **options,
    )


def test_knowledge_equals_our_own_scorer(
    model: Decoder, tokenizer: Tokenizer, placed: Placed
) -> None:
    found = evaluated(model, tokenizer, "general_knowledge", ITEMS)
    asked = choices.encode(knowledge_questions()[:ITEMS], tokenizer)
    batches = choices.batches(asked, 8, tokenizer.pad_id)
    own = (placed.graph, placed.params)
    accuracy = choices.accuracy(*own, asked, batches, placed.place)
    assert found["results"]["general_knowledge"]["acc,none"] == pytest.approx(accuracy)
    samples = found["samples"]["general_knowledge"]
    scored = [[score for ((score, _),) in sample["resps"]] for sample in samples]
    scores = [choices.scores(*own, placed.place(batch)) for batch in batches]
    np.testing.assert_allclose(scored, np.concatenate(scores)[:ITEMS], rtol=2e-5)
    assert 0 < accuracy < 1


def test_word_problems_equal_our_own_answers(
    model: Decoder, tokenizer: Tokenizer, placed: Placed
) -> None:
    options = {"apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 16}}
    found = evaluated(model, tokenizer, "word_problems", 8, **options)
    problems = word_problems.problems(64, seed=0, split="test")[:8]
    examples = encode_rows(problems, tokenizer, 512, "the problems")
    written = generate.answers(
        placed.graph,
        placed.params,
        [example.prompt_ids for example in examples],
        placed.place,
        batch_size=8,
        max_new_tokens=16,
        length=256,
        stop_ids=tokenizer.stop_ids,
    )
    answers = [tokenizer.decode(ids) for ids in written]
    samples = found["samples"]["word_problems"]
    assert [sample["resps"][0][0] for sample in samples] == answers
    accuracy = evaluate.exact_match(answers, [row["answer"] for row in problems])
    assert found["results"]["word_problems"]["exact_match,none"] == accuracy
    right = rows.final_answer(problems[0], [f"so {problems[0]['answer']}"])
    assert right == {"exact_match": 1}


def test_merging_tokenizers_cut_items_as_our_own_scorer(tokenizer: Tokenizer) -> None:
    questions = knowledge_questions()
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], show_progress=False
    )
    core.train_from_iterator([question.question for question in questions], trainer)
    merging = Tokenizer(core, {"eos_token": "<|end|>"})
    harnessed = NnxLlama.__new__(NnxLlama)
    harnessed._placed = Placed({}, {}, dict, merging, 1, 1)
    encoded = choices.encode(questions, merging)
    for row, question in zip(encoded, questions, strict=True):
        context = f"Question: {question.question}\nAnswer:"
        for ids, choice in zip(row.choices, question.choices, strict=True):
            assert harnessed._encode_pair(context, f" {choice}") == (row.prompt, ids)
    assert len(encoded[0].prompt) < len(f"Question: {questions[0].question}") / 2


TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
fewshot_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
{more}
"""
MORE = {
    "multiple_choice": "doc_to_choice: choices",
    "loglikelihood_rolling": "metric_list: [{metric: byte_perplexity}]",
}
ROWS = [
    {"question": "Capital of Peru?", "choices": ["Lima", "Cusco"], "answer": "Lima"},
    {"question": "Capital of Chad?", "choices": ["Sarh", "Doba"], "answer": "Doba"},
]


def write_task(directory: pathlib.Path, kind: str) -> pathlib.Path:
    directory.mkdir()
    file = directory / "capitals.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    text = TASK.format(file=file, kind=kind, more=MORE[kind])
    (directory / "capitals.yaml").write_text(text)
    return directory


@pytest.mark.parametrize("kind", MORE)
def test_the_command_runs_local_tasks_offline(
    kind: str,
    model_directory: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks, output = write_task(tmp_path / "tasks", kind), tmp_path / "results"
    output.mkdir()
    for name in ("samples_cities.jsonl", run.RESULTS):
        (output / name).write_text("of an earlier evaluation")
    command = ["--model", str(model_directory), "--tasks", "capitals"]
    command += ["--include-path", str(tasks), "--output", str(output)]
    command += ["--batch-size", "2", "--bootstrap-iters", "0"]
    assert main(command) == 0
    shown, _ = capsys.readouterr()
    results = json.loads((output / run.RESULTS).read_text())
    assert results["config"]["model"] == "tiny-llama"
    measured = results["results"]["capitals"]
    samples = (output / "samples_capitals.jsonl").read_text().splitlines()
    assert [json.loads(line)["doc"] for line in samples] == ROWS
    assert sorted(path.name for path in output.iterdir()) == [
        "results.json",
        "samples_capitals.jsonl",
    ]
    assert "|capitals|" in shown
    if kind == "multiple_choice":
        assert measured["acc,none"] in (0, 0.5, 1)
    else:
        # A uniform prediction of bytes has 256; a random model is no better.
        assert 100 < measured["byte_perplexity,none"] < 5000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--limit 0", "--limit must be >= 1, got 0"),
        ("--tasks ,", "--tasks needs at least one name"),
        ("--include-path nowhere", "--include-path must be a directory, got nowhere"),
        ("--tasks word_problem", "'word_problem', which is not a task; similar: word"),
        ("--tasks remote --include-path {tasks}", "Cannot load the task 'remote': "),
        ("--model nothing", "There is no model 'nothing'"),
        ("--max-length 1000", "max_length must be in [2, 512]"),
        ("--mesh rows=2", "unknown axis 'rows'"),
        (
            "--tasks word_problems --max-length 64",
            "--max-length must be above 64, the tokens that the task 'word_problems'",
        ),
        (
            "--tasks both,remoter --include-path {tasks}",
            "--tasks both remoter: Duplicate task 'remoter'",
        ),
        (
            "--tasks sampled --include-path {tasks}",
            "do_sample must be false and temperature 0",
        ),
        ("--output {tasks}/remote.yaml", "remote.yaml is a file"),
    ],
)
def test_invalid_input_is_reported_in_one_sentence(
    words: str,
    expected: str,
    model_directory: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The harness's own tasks have thousands of files.
    monkeypatch.setattr(run, "TaskManager", local_tasks)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "remote.yaml").write_text(
        "task: remote\ndataset_path: somebody/something\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: a\ndoc_to_target: b\n"
    )
    for name, kind in {"remoter": "loglikelihood", "sampled": "generate_until"}.items():
        (tasks / f"{name}.yaml").write_text(
            f"task: {name}\ncustom_dataset: !function local.rows\ntest_split: test\n"
            f"output_type: {kind}\ndoc_to_text: a\ndoc_to_target: b\n"
            + "generation_kwargs: {do_sample: true}\n"
            * (name == "sampled")
        )
    (tasks / "local.py").write_text(
        "import datasets\ndef rows(**_):\n"
        "    rows = datasets.Dataset.from_list([{'a': 'b'}])\n"
        "    return datasets.DatasetDict({'test': rows})\n"
    )
    (tasks / "both.yaml").write_text("group: both\ntask: [remoter]\n")
    output = tmp_path / "results"
    given = [word.format(tasks=tasks) for word in words.split()]
    command = ["--model", str(model_directory), "--output", str(output)]
    assert main([*command, "--tasks", "general_knowledge", *given]) == 2
    shown, error = capsys.readouterr()
    line = error.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.endswith(".")
    assert expected in line
    assert "Traceback" not in error
    assert "Loading" not in shown, "the weights were read before all was checked"
    assert not output.exists()


def test_values_of_the_wrong_type_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--batch-size", "many"])
    assert stop.value.code == 2
    shown, error = capsys.readouterr()
    assert not shown
    assert "Error parsing --batch-size: " in error
    assert "Traceback" not in error


def local_tasks(
    include_path: list[pathlib.Path], include_defaults: bool = False
) -> Any:
    return TaskManager(include_path=include_path, include_defaults=False)
