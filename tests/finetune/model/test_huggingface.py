import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.model.decoder_config import parameter_shapes
from examples.finetune.model.pretrained import Source, build, open_model
from examples.finetune.model.rotary import RopeScaling
from tests.finetune import logits, tiny


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
        ({"model_type": "phi3"}, "of type 'phi3', .*; supported are llama, mistral"),
        ({"model_type": "gemma3"}, "of type 'gemma3', .*; its text model alone is"),
        ({"model_type": None}, "of type None"),
        ({"attention_bias": True}, "attention_bias = True; only False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; only 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "'yarn' is none of"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "lacks 'factor'"),
        ({"hidden_size": "wide"}, "describes no usable model: .*'wide'"),
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


def test_links_of_the_hubs_cache_are_followed(
    tmp_path: pathlib.Path, tiny_source: Source
) -> None:
    """There a snapshot links to files beside it; elsewhere such links are refused."""
    snapshot = tiny.write_model(tmp_path / "models--owner--tiny/snapshots/0123")
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for number, path in enumerate([*snapshot.iterdir()]):
        path.rename(blobs / str(number))
        path.symlink_to(pathlib.Path("../../blobs") / str(number))
    assert open_model(str(snapshot)).config == tiny_source.config
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copytree(snapshot, tmp_path / "elsewhere/model", symlinks=True)
    shutil.copytree(blobs, tmp_path / "blobs")
    with pytest.raises(InputError, match=r"config\.json is a link to .*blobs/\d, out"):
        open_model(str(copy))


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


def test_a_tied_head_needs_no_tensor_and_ignores_one(tmp_path: pathlib.Path) -> None:
    config = tiny.CONFIG | {"tie_word_embeddings": True}
    model = build(config_of(tmp_path, config))
    assert "head" not in nnx.state(model)
    weights = tiny.tensors()
    del weights["lm_head.weight"]
    open_model(str(tiny.write_model(tmp_path, config, weights)))
    with pytest.raises(InputError, match=r"no tensor lm_head\.weight"):
        open_model(str(tiny.write_model(tmp_path, tiny.CONFIG, weights)))
