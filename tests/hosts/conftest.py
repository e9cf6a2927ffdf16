"""Fixtures for runs of several processes."""

import pathlib

import pytest

from tests.finetune import small


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with the tiny model."""
    small.write_model(tmp_path / "tiny-llama")
    return tmp_path
