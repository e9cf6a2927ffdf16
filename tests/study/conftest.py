"""The model that tests of the study's programs share."""

import pathlib

import pytest

from tests.finetune import small


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with the tiny model, in Hugging Face layout."""
    return small.write_model(tmp_path_factory.mktemp("tiny"))
