"""Greedy decoding with a cache against decoding that runs the whole text each time."""

import jax
import pytest
from flax import nnx

from examples.finetune.evaluation import generate
from examples.finetune.model import pretrained
from examples.finetune.model.decoder import Decoder
from examples.finetune.model.pretrained import Source
from tests.finetune import small

PROMPTS = [[5], [9, 8, 7, 6, 5, 4, 3, 2], [20, 30, 40], [7] * 17]
NEW = 12


@pytest.fixture(scope="module")
def model(tiny_source: Source) -> Decoder:
    return pretrained.build(tiny_source)


def plainly(model: Decoder, prompt: list[int], stops: set[int]) -> list[int]:
    """Continues one prompt, running the model on all of it for every token."""
    graph, params = nnx.split(model)
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW:
        token = int(small.logits(graph, params, ids)[-1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def decoded(model: Decoder, stops: set[int], batch_size: int) -> list[list[int]]:
    graph, params = nnx.split(model)
    return generate.answers(
        graph,
        params,
        PROMPTS,
        lambda batch: {name: jax.numpy.asarray(x) for name, x in batch.items()},
        batch_size=batch_size,
        max_new_tokens=NEW,
        stop_ids=stops,
    )


@pytest.mark.parametrize("batch_size", [4, 3])
def test_equals_decoding_without_a_cache(model: Decoder, batch_size: int) -> None:
    never = {271}
    expected = [plainly(model, prompt, never) for prompt in PROMPTS]
    assert decoded(model, never, batch_size) == expected
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)


def test_each_row_ends_at_its_own_stop(model: Decoder) -> None:
    free = [plainly(model, prompt, set()) for prompt in PROMPTS]
    stops = {free[0][0], free[1][4]}
    expected = [plainly(model, prompt, stops) for prompt in PROMPTS]
    assert decoded(model, stops, 4) == expected
    assert expected[0] == []
    assert len(expected[1]) <= 4
