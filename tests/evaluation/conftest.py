"""The tiny model, prepared for scoring, and a float64 reference."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from examples.evaluation.batching import Placed
from examples.finetune.model import pretrained
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.tokenizer import Tokenizer
from tests.finetune import small

LONGEST = 64


@dataclasses.dataclass(frozen=True)
class Reference:
    """Runs the model on one sequence at a time, with the rest in float64."""

    graph: nnx.GraphDef
    params: Any

    def logs(self, ids: Sequence[int]) -> np.ndarray:
        """Returns log-probabilities [T, V] after each of at most 64 tokens."""
        logits = small.logits(self.graph, self.params, ids, LONGEST).astype(np.float64)
        return log_softmax(logits, axis=1)

    def score(
        self, context: Sequence[int], continuation: Sequence[int], window: int
    ) -> tuple[float, bool]:
        """Returns a continuation's log-likelihood, and whether it is greedy."""
        seen = [*context, *continuation][-window - 1 : -1]
        logs = self.logs(seen)[len(seen) - len(continuation) :]
        scored = logs[np.arange(len(continuation)), list(continuation)]
        greedy = logs.argmax(axis=1) == np.asarray(continuation, int)
        return float(scored.sum()), bool(greedy.all())

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """Returns the most likely tokens after a sequence, one at a time."""
        written = list(ids)
        for _ in range(count):
            written.append(int(self.logs(written)[-1].argmax()))
        return written[len(ids) :]


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tiny model in Hugging Face layout, with a context of 512 tokens."""
    return small.write_model(tmp_path_factory.mktemp("evaluated") / "tiny-llama")


@pytest.fixture(scope="session")
def tokenizer(model_directory: pathlib.Path) -> Tokenizer:
    """The tiny model's tokenizer, whose tokens are bytes."""
    return pretrained.open_model(str(model_directory)).tokenizer


@pytest.fixture(scope="session")
def model(model_directory: pathlib.Path) -> Decoder:
    """The tiny model, which tests must not change."""
    source = pretrained.open_model(str(model_directory))
    return pretrained.build(source, scan_layers=True)


@pytest.fixture(scope="session")
def placed(model: Decoder, tokenizer: Tokenizer) -> Placed:
    """The model for scoring, with rows of four and a window of 40 tokens."""
    return Placed.of(model, tokenizer, rows=4, window=40)


@pytest.fixture(scope="session")
def reference(model: Decoder) -> Reference:
    """The reference for the tiny model."""
    return Reference(*nnx.split(model))
