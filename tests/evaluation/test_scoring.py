"""Scored pairs against one sequence at a time and a softmax in float64."""

import jax
import numpy as np
import pytest

from examples.evaluation.batching import Placed, power_of_two
from examples.evaluation.scoring import Pair, log_likelihoods, share
from examples.finetune.evaluation import choices
from tests.evaluation.conftest import Reference

ASK = list(b"Question: what is it?")


def pairs_of_every_kind(reference: Reference) -> list[Pair]:
    random = np.random.RandomState(5)

    def some(count: int) -> list[int]:
        return random.randint(0, 256, count).tolist()

    shared = [Pair(ASK, some(count)) for count in (3, 1, 5, 2, 4, 30)]
    lengths = [(1, 1), (1, 40), (60, 3), (39, 1), (40, 1), (41, 1), (5, 30), (17, 17)]
    lengths += [(1 + count, 2 + count % 3) for count in range(25)]
    alone = [Pair(some(context), some(rest)) for context, rest in lengths]
    # A greedy continuation, the same with another last token, and only its end.
    likely = reference.greedy(ASK, 6)
    greedy = [Pair(ASK, likely), Pair(ASK, [*likely[:-1], (likely[-1] + 1) % 256])]
    greedy += [Pair([*ASK, *likely[:4]], likely[4:]), Pair(ASK, [])]
    pairs = shared + alone + greedy + shared[:2]
    return [pairs[place] for place in random.permutation(len(pairs))]


def test_scores_equal_the_full_softmax_in_the_order_of_the_pairs(
    placed: Placed, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = pairs_of_every_kind(reference)
    done: list[int] = []
    with jax.log_compiles(), caplog.at_level("WARNING"):
        found = log_likelihoods(placed, pairs, done.append)
        # Other texts that are slightly shorter have the same shapes.
        log_likelihoods(placed, [Pair(c, rest[:-1]) for c, rest in pairs], id)
    expected = [
        reference.score(*pair, window=placed.window) if pair.continuation else (0, True)
        for pair in pairs
    ]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert 3 <= sum(greedy for _, greedy in found) < len(pairs)
    np.testing.assert_allclose(
        [score for score, _ in found], [score for score, _ in expected], rtol=2e-5
    )
    assert sum(done) == len(pairs)
    # Rows of 2 to 50 tokens are padded to 16, 32 or 64, and each length compiles once.
    compiled = [
        record.message
        for record in caplog.records
        if record.message.startswith("Compiling jit(scores_and_greedy)")
    ]
    assert 1 <= len(compiled) <= 3, compiled


def test_continuations_share_the_row_of_their_context_if_it_saves_tokens() -> None:
    context = list(range(10))
    pairs = [
        Pair(context, [1]),
        Pair([7], [1]),
        Pair(context, [2, 3]),
        Pair(context, [4]),
        Pair(context, [5]),
        Pair(context, [6]),  # the fifth, but a row has four
        Pair([7], [1, 2]),  # longer than its context
        Pair([*range(90, 99), *context], [8] * 11),  # cut, the context is the same
        Pair(context, [9] * 10),  # behind eleven more, too long for the window
    ]
    rows = share(pairs, window=20)
    assert [row.pairs for row in rows] == [[0, 2, 3, 4], [1], [5], [6], [7], [8]]
    assert rows[4].row.prompt == context
    assert rows[0].row.choices == [[1], [2, 3], [4], [5]]
    assert all(row.length <= 21 for row in rows)


def test_a_too_long_continuation_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 20 tokens, the model's window, got"):
        share([Pair([1], [2] * 21)], window=20)


def test_the_head_processes_long_rows_in_parts(
    placed: Placed, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair([9], list(range(count))) for count in (33, 40, 38)]
    monkeypatch.setattr(choices, "TOKENS", 32)
    choices.scores_and_greedy.clear_cache()
    found = log_likelihoods(placed, pairs, id)
    choices.scores_and_greedy.clear_cache()
    expected = [reference.score(*pair, window=placed.window) for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("number", "padded"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128)]
)
def test_power_of_two(number: int, padded: int) -> None:
    assert power_of_two(number, 16) == padded
