"""Invalid input: rows, models, and numbers that are not finite."""

import json
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy

from tests.faults.damage import cut
from tests.faults.lab import Case, Lab, Outcome
from tests.finetune import small, tiny

_REFUSED = "is refused in a sentence before anything is made"
GOOD = b'{"question": "1 + 1?", "answer": "2"}\n'
# A byte that does not occur in the texts for evaluation.
RARE = "\x07"


def _rows(fault: str, content: bytes | Callable[[], bytes], *says: str) -> Case:
    """Returns a case with an invalid file of training rows."""

    def work(lab: Lab) -> Outcome:
        path = lab.new().with_suffix(".jsonl")
        path.write_bytes(content() if callable(content) else content)
        files = ["--train-file", str(path), "--task-eval-file", str(path)]
        return lab.refused_here(*files, says=(path.name, *says))

    return Case(f"training rows: {fault}", _REFUSED, work, quick=True)


def _model(fault: str, harm: Callable[[pathlib.Path], object], *says: str) -> Case:
    """Returns a case with an invalid model directory."""

    def work(lab: Lab) -> Outcome:
        path = small.write_model(lab.new())
        harm(path)
        return lab.refused_here("--model", str(path), says=says)

    return Case(f"model: {fault}", _REFUSED, work, quick=True)


def _config(fault: str, changes: dict[str, Any], *says: str) -> Case:
    def harm(path: pathlib.Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return _model(f"config.json with {fault}", harm, *says)


def _header(fault: str, change: Callable[[dict[str, Any]], object]) -> Case:
    """Returns a case of weights with an invalid header."""

    def harm(path: pathlib.Path) -> None:
        header, data = _taken_apart(path / "model.safetensors")
        change(header)
        text = json.dumps(header).encode()
        raw = struct.pack("<Q", len(text)) + text + data
        (path / "model.safetensors").write_bytes(raw)

    return _model(f"safetensors with {fault}", harm, "model.safetensors")


def _taken_apart(path: pathlib.Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _other_weights(
    change: Callable[[dict[str, np.ndarray]], object],
) -> Callable[[pathlib.Path], None]:
    def harm(path: pathlib.Path) -> None:
        weights = tiny.tensors()
        change(weights)
        safetensors.numpy.save_file(weights, path / "model.safetensors")

    return harm


def _lengthened(length: int) -> Callable[[pathlib.Path], None]:
    def harm(path: pathlib.Path) -> None:
        raw = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", length) + raw[8:])

    return harm


def _index(file: object) -> Callable[[pathlib.Path], None]:
    def harm(path: pathlib.Path) -> None:
        (path / "model.safetensors").rename(path / "model-1.safetensors")
        names = dict.fromkeys(tiny.tensors(), "model-1.safetensors")
        index = {"weight_map": names | {"lm_head.weight": file}}
        name = "model.safetensors.index.json"
        (path / name).write_text(json.dumps(index))

    return harm


def _linked(name: str) -> Callable[[pathlib.Path], None]:
    def harm(path: pathlib.Path) -> None:
        outside = path.with_suffix(".outside")
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return harm


def _pickled(path: pathlib.Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _text(name: str, text: str | bytes) -> Callable[[pathlib.Path], object]:
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda path: (path / name).write_bytes(raw)


def _tokens(settings: dict[str, Any]) -> Callable[[pathlib.Path], object]:
    def harm(path: pathlib.Path) -> None:
        file = path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return harm


def _short_gguf(lab: Lab) -> Outcome:
    """Truncates the default model's cached file, without access to a package index."""
    home = lab.new()
    file = home / "mofo_jax" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    alone = {"XDG_CACHE_HOME": str(home), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": ""}
    done = lab.run(lab.new(), "--model", "smollm2-135m-instruct", env=alone)
    return lab.refused(done, "Cannot fetch the model smollm2-135m-instruct")


def _not_finite(lab: Lab, value: float, rare_rows: int) -> list[str]:
    """Returns options of a run in which rows with a rare byte spoil the gradients."""
    model = small.write_model(lab.new())
    weights = tiny.tensors()
    token = tiny.tokenizer().encode(RARE).ids[0]
    weights["model.embed_tokens.weight"][token] = value
    safetensors.numpy.save_file(weights, model / "model.safetensors")
    path = lab.new().with_suffix(".jsonl")
    rows = [
        {"question": f"{n} + 1?", "answer": f"{RARE if n < rare_rows else ''}{n + 1}"}
        for n in range(16)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    held_out = lab.new().with_suffix(".jsonl")
    held_out.write_bytes(GOOD)
    words = ["--model", str(model), "--train-file", str(path), "--no-pack"]
    return [*words, "--task-eval-file", str(held_out)]


def _skipped(lab: Lab) -> Outcome:
    words = _not_finite(lab, 3e38, 1)
    run = lab.new()
    done = lab.run(run, *words, "--steps", "8")
    assert done.status == 0, done.errors[-1000:]
    summary = json.loads((run / "summary.json").read_text())["arms"]["mofo"]
    assert summary["skipped_steps"] == 1, summary["skipped_steps"]
    assert "the step is skipped" in done.errors
    kept = np.load(run / "arms" / "mofo" / "skipped.npz")
    token = tiny.tokenizer().encode(RARE).ids[0]
    assert (kept["tokens"] == token).any(), "another batch was kept"
    still = [row["step"] for row in lab.rows(run) if row["moved_fraction"] == 0]
    assert len(still) == 1
    return Outcome(f"step {still[0]} was skipped, its batch kept", "1 step")


def _all_nan(lab: Lab) -> Outcome:
    words = _not_finite(lab, float("nan"), 16)
    run = lab.new()
    words += ["--max-skipped-steps", "2"]
    says = "step 3 of mofo", "3 in a row", "--max-skipped-steps allows 2", "skipped.npz"
    refused = lab.refused(lab.run(run, *words), *says)
    assert lab.steps(run)[-1:] == [2], "the last good checkpoint is gone"
    lab.refused(lab.run(run, *words), *says)
    return Outcome(refused.happened, "3 steps, which moved nothing")


CASES = [
    _rows("not UTF-8", GOOD + b'{"question": "\xff", "answer": "2"}\n', "Line 2"),
    _rows("an empty file", b"", "is empty"),
    _rows("a line of 50 MB", lambda: GOOD + b" " * 50_000_000 + GOOD, "longer than"),
    _rows("an empty answer", GOOD + b'{"question": "1", "answer": " "}', "Line 2"),
    _rows("no assistant", b'{"messages": [{"role": "user", "content": "1"}]}', "learn"),
    _rows("a text of one token", b'{"text": "1"}', "no token to learn"),
    _rows("a list", b'["question", "answer"]', "must be a JSON object"),
    _rows("a number", b"7", "must be a JSON object"),
    _rows("numbers for text", b'{"question": 1, "answer": 2}', "is no string"),
    _rows("two forms", GOOD + b'{"text": "1 + 1"}', "Line 2", "line 1 has"),
    _rows("cut short", GOOD + GOOD[:20], "Line 2", "not valid JSON"),
    _rows("nested 100,000 deep", b"[" * 100_000, "nested too deeply"),
    _rows("half a surrogate pair", rb'{"text": "a\ud800b"}', "half a surrogate"),
    _rows("null bytes", GOOD + b"\0" * 40, "Line 2"),
    _config("a million million layers", {"num_hidden_layers": 10**12}, "num_layers"),
    _config("no heads", {"num_attention_heads": 0}, "num_attention_heads"),
    _config("a negative width", {"hidden_size": -32}, "hidden_size"),
    _config("a width of 1e30", {"hidden_size": 1e30}, "hidden_size"),
    _config("an epsilon that is NaN", {"rms_norm_eps": float("nan")}, "norm_eps"),
    _config("a negative rotary base", {"rope_theta": -1.0}, "rope_theta"),
    _config("text for a truth", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    _model("config.json nested deeply", _text("config.json", "[" * 10**5), "deeply"),
    _model("config.json not UTF-8", _text("config.json", b"\xff"), "config.json"),
    _model(
        "a tensor of another shape",
        _other_weights(lambda w: w.update({"model.norm.weight": np.float32([1, 2])})),
        *("model.norm.weight", "(2,)", "(32,)"),
    ),
    _model(
        "whole numbers for weights",
        _other_weights(lambda w: w.update({"model.norm.weight": np.ones(32, np.int8)})),
        *("model.norm.weight", "is of type I8"),
    ),
    _model("safetensors with a header of a terabyte", _lengthened(2**40), "header"),
    _model("safetensors with a header beyond the file", _lengthened(10**7), "header"),
    _header(
        "offsets beyond the data",
        lambda h: h["model.norm.weight"].update(data_offsets=[10**9, 10**9 + 128]),
    ),
    _header(
        "overlapping tensors",
        lambda h: h["model.norm.weight"].update(
            data_offsets=h["model.layers.0.input_layernorm.weight"]["data_offsets"]
        ),
    ),
    _header("an unknown type", lambda h: h["model.norm.weight"].update(dtype="F31")),
    _header("a shape that lies", lambda h: h["model.norm.weight"].update(shape=[64])),
    _model(
        "safetensors cut short", lambda p: cut(p / "model.safetensors"), "safetensors"
    ),
    _model("an index that leads up", _index("../model.safetensors"), "'../model"),
    _model("an index with an absolute path", _index("/etc/passwd"), "'/etc/passwd'"),
    _model("pickled weights only", _pickled, "pytorch_model.bin", "can run code"),
    _model("weights that are a link out", _linked("model.safetensors"), "outside"),
    _model("a tokenizer that is a link out", _linked("tokenizer.json"), "outside"),
    _model(
        "tokenizer.json cut short",
        lambda path: cut(path / "tokenizer.json"),
        "tokenizer.json is not a tokenizer",
    ),
    _model("a number for a token", _tokens({"eos_token": 5}), "eos_token"),
    _model("a number for the template", _tokens({"chat_template": 5}), "template"),
    _model(
        "a template that never ends",
        _tokens({"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}),
        *("chat template", "refuses"),
    ),
    _model(
        "a template that reaches for Python",
        _tokens({"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}),
        *("chat template", "refuses"),
    ),
    _model(
        "a template not UTF-8", _text("chat_template.jinja", b"\xff"), "not UTF-8 text"
    ),
    Case("model: a GGUF file cut short", "is fetched again or refused", _short_gguf),
    Case(
        "one batch without a finite gradient",
        "its step is skipped, the batch kept, the run ends well",
        _skipped,
    ),
    Case(
        "a loss that is NaN in every step",
        "ends in a sentence after --max-skipped-steps, the last checkpoint good",
        _all_nan,
        quick=True,
    ),
]
