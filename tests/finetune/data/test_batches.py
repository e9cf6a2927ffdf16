import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.finetune.data.batches import (
    Batch,
    evaluation_batches,
    loss_targets,
    token_count,
    training_batches,
)
from examples.finetune.data.encoding import Example


def example_of(number: int, length: int) -> Example:
    """Tokens that say whose they are: 100 * number + place."""
    ids = tuple(100 * number + place for place in range(length))
    return Example(ids[:1], ids, (False,) + (True,) * (length - 1), "")


LENGTHS = (5, 3, 7, 4, 6, 2, 5, 8, 3, 4)
EXAMPLES = [example_of(number, length) for number, length in enumerate(LENGTHS, 1)]
NAMES = ("tokens", "loss_mask", "segments", "positions")


def unpack(batch: Batch) -> list[tuple[int, ...]]:
    """The examples of a batch by row and segment, all four arrays checked."""
    found = []
    for tokens, loss, segments, positions in zip(
        *(batch[name] for name in NAMES), strict=True
    ):
        for segment in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == segment)
            ids = tuple(tokens[places].tolist())
            assert places.tolist() == list(range(places[0], places[0] + len(ids)))
            assert positions[places].tolist() == list(range(len(ids)))
            assert loss[places].tolist() == [False] + [True] * (len(ids) - 1)
            found.append(ids)
        padding = segments == 0
        assert not tokens[padding].any() and not loss[padding].any()
        assert not np.diff(padding.astype(int)).min(initial=0) < 0
    return found


def batches(count: int, **changes: object) -> list[Batch]:
    settings = {"batch_size": 2, "sequence_length": 10, "seed": 0, "pack": False}
    dataset = training_batches(EXAMPLES, **{**settings, **changes})  # pyright: ignore[reportArgumentType]
    return list(itertools.islice(iter(dataset), count))


def assert_same(first: Batch, second: Batch) -> None:
    assert set(first) == set(second) == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name], strict=True)


def test_an_epoch_holds_every_example_once_and_the_next_shuffles_anew():
    found = [ids for batch in batches(10) for ids in unpack(batch)]
    first, second = found[:10], found[10:]
    assert sorted(first) == sorted(second) == sorted(e.ids for e in EXAMPLES)
    assert first != second
    assert batches(1)[0]["tokens"].shape == (2, 10)
    dtypes = [batches(1)[0][name].dtype for name in NAMES]
    assert dtypes == [np.int32, bool, np.int32, np.int32]


def test_packed_batches_hold_the_same_examples_in_the_same_order():
    order = [ids for batch in batches(60) for ids in unpack(batch)]
    start, rows = 0, 0
    for batch in batches(20, pack=True):
        found = unpack(batch)
        # Within a batch first fit may reorder, across batches nothing moves.
        assert sorted(found) == sorted(order[start : start + len(found)])
        start, rows = start + len(found), rows + 2
        # No row has room for the example that opens the next batch.
        room = (batch["segments"] == 0).sum(axis=1)
        assert len(order[start]) > room.max()
    assert start > 1.5 * rows


@pytest.mark.parametrize("pack", [False, True])
def test_after_set_state_the_batches_are_the_same(pack):
    # 12 batches of at least 2 examples: the run passes the ends of two epochs.
    settings = {"batch_size": 2, "sequence_length": 10, "seed": 5, "pack": pack}
    iterator = iter(training_batches(EXAMPLES, **settings))
    states, expected = [], []
    for _ in range(12):
        states.append(json.dumps(iterator.get_state()))
        expected.append(next(iterator))
    assert sum(len(unpack(batch)) for batch in expected) > 20
    fresh = iter(training_batches(EXAMPLES, **settings))
    next(fresh)  # A used iterator goes back as well as a fresh one goes on.
    for start, state in enumerate(states):
        fresh.set_state(json.loads(state))
        for batch in expected[start : start + 3]:
            assert_same(next(fresh), batch)


@pytest.mark.parametrize("pack", [False, True])
def test_processes_share_the_batch_of_one(pack):
    settings = {"batch_size": 6, "pack": pack}
    whole = batches(6, **settings)
    shared = [[0, 1], [2, 4], [3, 5]]
    parts = [batches(6, **settings, rows=rows) for rows in shared]
    for batch, *shares in zip(whole, *parts, strict=True):
        for rows, share in zip(shared, shares, strict=True):
            # Of the whole batch, although only some of its rows were made.
            assert token_count(share) == token_count(batch)
            assert share.pop("count").shape == ()
            assert_same(share, {name: batch[name][rows] for name in NAMES})


@pytest.mark.parametrize("pack", [False, True])
def test_the_seed_decides_the_order(pack):
    first, again, other = (batches(5, seed=seed, pack=pack) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert_same(one, two)
    assert unpack(first[0]) + unpack(first[1]) != unpack(other[0]) + unpack(other[1])


def test_evaluation_batches_hold_every_example_once_in_order():
    examples = [example_of(number, 3 + number) for number in range(1, 6)]
    made = evaluation_batches(examples, batch_size=2, sequence_length=100)
    assert [ids for batch in made for ids in unpack(batch)] == [e.ids for e in examples]
    assert [batch["tokens"].shape for batch in made] == [(2, 32)] * 3
    assert not made[-1]["segments"][1].any()
    (batch,) = evaluation_batches(examples, batch_size=5, sequence_length=9)
    assert batch["tokens"].shape == (5, 9)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="longest example of 8 tokens, got 7"):
        batches(1, sequence_length=7)
    with pytest.raises(ValueError, match="longest example of 8 tokens, got 7"):
        evaluation_batches(EXAMPLES, batch_size=2, sequence_length=7)
    with pytest.raises(ValueError, match="got 10 examples and batch_size 0"):
        batches(1, batch_size=0)
    with pytest.raises(ValueError, match="got 0 examples and batch_size 1"):
        evaluation_batches([], batch_size=1, sequence_length=7)
    with pytest.raises(ValueError, match=r"below batch_size, 2, got \[1, 2\]"):
        batches(1, rows=[1, 2])


def test_targets_are_the_next_tokens_of_the_same_example():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 4, (40, 6))
    rows = [np.repeat(np.arange(1, 7), counts)[:12] for counts in lengths]
    segments = np.stack([np.pad(row, (0, 12 - len(row))) for row in rows])
    assert (segments == 0).any() and (segments[:, -1] != 0).any()
    batch = {
        "tokens": generator.integers(0, 99, segments.shape, np.int32),
        "loss_mask": generator.random(segments.shape) < 0.7,
        "segments": segments.astype(np.int32),
    }
    targets, weights = loss_targets(batch)
    assert (targets.shape, weights.shape) == ((40, 12), (40, 12))
    assert (targets.dtype, weights.dtype) == (np.int32, bool)
    for row, place in np.ndindex(segments.shape):
        expected = (
            place < 11
            and segments[row, place] == segments[row, place + 1] != 0
            and batch["loss_mask"][row, place + 1]
        )
        assert weights[row, place] == expected
        if expected:
            assert targets[row, place] == batch["tokens"][row, place + 1]
    arrays = {name: jnp.asarray(values) for name, values in batch.items()}
    for function in (loss_targets, jax.jit(loss_targets)):
        jax_targets, jax_weights = function(arrays)
        assert isinstance(jax_targets, jax.Array)
        np.testing.assert_array_equal(jax_targets, targets, strict=True)
        np.testing.assert_array_equal(jax_weights, weights, strict=True)
