"""Batches for training and evaluation: shuffled, packed or padded, resumable.

The examples come from `read_rows` (in `examples.finetune.data.rows`) and `encode_rows`
(in `examples.finetune.data.encoding`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.finetune.data.encoding import Example

if TYPE_CHECKING:
    import grain

# The length of evaluation batches is that of their longest example, rounded up to a
# multiple of this, so that each set compiles once with little padding.
LENGTH_STEP = 32

Batch = dict[str, np.ndarray]


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple that is at least a number."""
    return -(-number // multiple) * multiple


def training_batches(
    examples: Sequence[Example],
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    pack: bool,
    rows: Sequence[int] | None = None,
) -> "grain.IterDataset[Batch]":
    """Returns an endless data set of batches, shuffled again in each epoch.

    Its iterator has `get_state` and `set_state`. The state is a small dictionary of
    JSON values, from which the same batches follow. Every process draws the contents of
    the whole batch and makes only its own rows, so that batches and state do not depend
    on the number of processes.

    Args:
      examples: at least one, none longer than `sequence_length`.
      batch_size: rows of a batch over all processes.
      sequence_length: tokens of a row.
      seed: seed of the shuffles, in [0, 2**32).
      pack: whether a row may contain several examples, by first fit in the shuffled
        order; around the end of an epoch they may come from both epochs. Otherwise a
        row has one example, padded.
      rows: the rows that this process makes, in order; None for all of them.

    Returns:
      The data set. A batch has `tokens` (int32), `loss_mask` (bool), `segments` (int32,
      the examples of a row numbered from 1, 0 is padding) and `positions` (int32,
      counted within an example), each [R, sequence_length] for R rows; given `rows`,
      also `count` for `token_count`.

    Raises:
      ValueError: an argument is out of its range.
    """
    import grain

    _check_lengths(examples, batch_size, sequence_length)
    if rows is not None and not {*rows} <= {*range(batch_size)}:
        raise ValueError(f"rows must be below batch_size, {batch_size}, got {rows}")
    dataset = (
        grain.MapDataset.source([_arrays(example) for example in examples])
        .shuffle(seed=seed)
        .repeat()
        # Threads that read ahead would not help, since everything is in memory.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    # With as many bins as rows, one round of packing is one batch, so batches are in
    # the shuffled order. Padding is packing with one example per row.
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset,
        length_struct={"tokens": sequence_length, "loss_mask": sequence_length},
        num_packing_bins=batch_size,
        shuffle_bins=False,
        max_sequences_per_bin=None if pack else 1,
    )

    def stacked(drawn: Sequence[Batch]) -> Batch:
        batch = {
            name: np.stack([drawn[row][key] for row in rows or range(batch_size)])
            for name, key in {
                "tokens": "tokens",
                "loss_mask": "loss_mask",
                "segments": "tokens_segment_ids",
                "positions": "tokens_positions",
            }.items()
        }
        if rows is None:
            return batch
        counts = [np.count_nonzero(row["tokens_segment_ids"]) for row in drawn]
        return batch | {"count": np.array(sum(counts), np.int32)}

    return packed.batch(batch_size, batch_fn=stacked)


def token_count(batch: Batch) -> int:
    """Returns the number of tokens of a training batch over all processes, unpadded."""
    return int(batch.get("count", np.count_nonzero(batch["segments"])))


def evaluation_batches(
    examples: Sequence[Example], *, batch_size: int, sequence_length: int
) -> list[Batch]:
    """Returns every example once, in order, one per row.

    Args:
      examples: at least one, none longer than `sequence_length`.
      batch_size: rows of a batch; the last one is completed with rows of padding.
      sequence_length: the most tokens of a row. All batches have the length of the
        longest example, rounded up to a multiple of 32, but at most this.

    Returns:
      Batches as in `training_batches`, all of one shape.

    Raises:
      ValueError: an argument is out of its range.
    """
    longest = _check_lengths(examples, batch_size, sequence_length)
    length = min(sequence_length, round_up(longest, LENGTH_STEP))
    batches: list[Batch] = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        batches.append(padded(part, batch_size, length))
    return batches


def padded(examples: Sequence[Example], rows: int, length: int) -> Batch:
    """Returns examples as the first rows of a batch whose other rows are padding.

    Args:
      examples: at most `rows`, none longer than `length`.
      rows: rows of the batch.
      length: tokens of a row.

    Returns:
      A batch as in `training_batches`.
    """
    shape = rows, length
    batch = {
        "tokens": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, bool),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    for row, example in enumerate(examples):
        used = len(example.ids)
        for name, values in _arrays(example).items():
            batch[name][row, :used] = values
        batch["segments"][row, :used] = 1
        batch["positions"][row, :used] = np.arange(used)
    return batch


def _arrays(example: Example) -> Batch:
    return {
        "tokens": np.asarray(example.ids, np.int32),
        "loss_mask": np.asarray(example.loss, bool),
    }


def _check_lengths(
    examples: Sequence[Example], batch_size: int, sequence_length: int
) -> int:
    """Returns the length of the longest example."""
    if not examples or batch_size < 1:
        raise ValueError(
            f"examples and batch_size must not be empty or 0, got {len(examples)}"
            f" examples and batch_size {batch_size}"
        )
    longest = max(len(example.ids) for example in examples)
    if longest > sequence_length:
        raise ValueError(
            f"sequence_length must hold the longest example of {longest} tokens, got"
            f" {sequence_length}"
        )
    return longest


def loss_targets(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the targets of each position: the next token of the same example.

    Args:
      batch: `tokens`, `loss_mask` and `segments`, [B, T] each, all NumPy or all JAX
        arrays (traced ones too).

    Returns:
      The targets, int32 [B, T], and a mask, bool [B, T]: whether the next token carries
      loss and belongs to the same example. Targets where it is False are arbitrary.
    """
    namespace = batch["tokens"].__array_namespace__()

    def following(x: Any) -> Any:
        return namespace.concat([x[:, 1:], namespace.zeros_like(x[:, :1])], axis=1)

    segments, next_segments = batch["segments"], following(batch["segments"])
    weights = following(batch["loss_mask"]) & (segments == next_segments)
    return following(batch["tokens"]), weights & (segments != 0)
