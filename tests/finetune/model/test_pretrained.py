import pathlib
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError

from examples.finetune.command.errors import InputError
from examples.finetune.model.pretrained import Source, build, open_model
from tests.finetune import tiny


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
