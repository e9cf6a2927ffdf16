import errno
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.model import export as export_module
from examples.finetune.model.export import check_directory, export
from examples.finetune.model.pretrained import Source, build, open_model
from examples.finetune.model.tokenizer import Tokenizer
from tests.finetune import tiny


def assert_same_parameters(first: Any, second: Any) -> None:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_an_export_read_back_is_the_same_model(
    tmp_path: pathlib.Path, tiny_source: Source, scan_layers: bool, param_dtype: Any
) -> None:
    options: dict[str, Any] = {"scan_layers": scan_layers, "param_dtype": param_dtype}
    model = build(tiny_source, **options)
    export(model, tiny_source.tokenizer, tmp_path / "export")
    again = open_model(str(tmp_path / "export"))
    assert again.config == tiny_source.config
    assert again.tokenizer.stop_ids == tiny_source.tokenizer.stop_ids
    messages = [{"role": "user", "content": "Hello"}]
    text = tiny_source.tokenizer.chat(messages)
    assert again.tokenizer.chat(messages) == text
    assert again.tokenizer.encode(text) == tiny_source.tokenizer.encode(text)
    assert_same_parameters(nnx.state(model), nnx.state(build(again, **options)))


def test_an_export_holds_the_files_and_tensors_of_the_original(
    tmp_path: pathlib.Path, tiny_source: Source
) -> None:
    directory = tmp_path / "new" / "export"
    export(build(tiny_source), tiny_source.tokenizer, directory)
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert list((tmp_path / "new").iterdir()) == [directory]
    stored = safetensors.numpy.load_file(directory / "model.safetensors")
    original = tiny.tensors()
    assert stored.keys() == original.keys()
    for name, values in original.items():
        np.testing.assert_array_equal(stored[name], values)
    config = json.loads((directory / "config.json").read_text())
    for key in tiny.CONFIG:
        assert config[key] == tiny.CONFIG[key]
    assert config["rope_parameters"] == tiny.ROPE | {"rope_theta": tiny.THETA}
    assert config["eos_token_id"] == [258]
    assert config["torch_dtype"] == "float32"


def test_large_weights_are_cut_into_files(
    tmp_path: pathlib.Path, tiny_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_FILE_BYTES", 50_000)
    model = build(tiny_source)
    export(model, tiny_source.tokenizer, tmp_path / "export")
    files = sorted((tmp_path / "export").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(path.stat().st_size < 52_000 for path in files)
    again = build(open_model(str(tmp_path / "export")))
    assert_same_parameters(nnx.state(model), nnx.state(again))


def test_an_earlier_export_is_replaced(
    tmp_path: pathlib.Path, tiny_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_source)
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_FILE_BYTES", 50_000)
        export(model, tiny_source.tokenizer, tmp_path / "export")
    export(model, tiny_source.tokenizer, tmp_path / "export")
    weights = list((tmp_path / "export").glob("*.safetensors"))
    assert [path.name for path in weights] == ["model.safetensors"]
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]


def test_a_model_or_file_of_somebody_else_is_not_replaced(
    tmp_path: pathlib.Path, tiny_source: Source
) -> None:
    other = tiny.write_model(tmp_path / "other")
    ours = tmp_path / "ours"
    export(build(tiny_source), tiny_source.tokenizer, ours)
    check_directory(ours)
    (ours / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    check_directory(tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for directory in (other, ours, tmp_path / "folder"):
        before = sorted(directory.iterdir())
        with pytest.raises(InputError, match="is not empty and is not an earlier"):
            export(build(tiny_source), tiny_source.tokenizer, directory)
        assert sorted(directory.iterdir()) == before


@pytest.mark.parametrize("name", ["file", "file/export"])
def test_a_place_that_cannot_be_written_is_refused_early(
    tmp_path: pathlib.Path, name: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        InputError, match=r"Cannot write the export to .*(directory|exists)"
    ):
        check_directory(tmp_path / name)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (Tokenizer, "save", OSError(errno.ENOSPC, "No space left on device")),
        (
            safetensors.numpy,
            "save_file",
            safetensors.SafetensorError("I/O error: No space left on device"),
        ),
    ],
)
def test_a_full_disk_leaves_the_earlier_export(
    tmp_path: pathlib.Path,
    tiny_source: Source,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    error: Exception,
) -> None:
    model = build(tiny_source)
    export(model, tiny_source.tokenizer, tmp_path / "export")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(place, name, fail)
    with pytest.raises(InputError, match=r"export to .*No space left on device"):
        export(model, tiny_source.tokenizer, tmp_path / "export")
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]
    again = build(open_model(str(tmp_path / "export")))
    assert_same_parameters(nnx.state(model), nnx.state(again))
