"""The tiny model, opened, for the tests of the study."""

import pathlib

import pytest

from examples.finetune import pretrained
from examples.finetune.pretrained import Source
from tests.finetune import small


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with the tiny model, in Hugging Face layout."""
    return small.write_model(tmp_path_factory.mktemp("study") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_source(tiny_model: pathlib.Path) -> Source:
    """The tiny model, opened."""
    return pretrained.open_model(str(tiny_model))
