"""Replay: training keeps the model close to the base model on the base model's texts.

In addition to the task's loss, a step minimizes the forward Kullback-Leibler divergence
from the base model on texts that the base model generated. Its predictions are stored
as its final hidden states, which have a few hundred numbers per token instead of tens
of thousands of logits. In each step its head, which is stored on the devices, computes
the logits from them, for a part of the tokens at a time.

The idea is from https://arxiv.org/abs/2605.26097 and its predecessors.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.data.batches import Batch, loss_targets, round_up
from examples.finetune.evaluation.token_losses import forward_kl, head_of
from examples.finetune.model import sharding
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.decoder import Decoder
from examples.finetune.training.own_text import Text, batch

# Number of arrays with the size of a part's logits that exist at the same time: both
# models' logits, intermediate values of the divergence, and gradients.
_ARRAYS = 8


class Term(NamedTuple):
    """The data for the term of replay in a training step.

    Attributes:
      rows: one batch of texts: `tokens`, `positions`, `segments` int32 and `loss_mask`
        bool [R, T], `base_hidden` float32 [R, T, D].
      head: the base model's parameters that compute logits from hidden states.
      weight: weight of the mean divergence, a float32 scalar.
    """

    rows: Mapping[str, jax.Array]
    head: Mapping[str, Any]
    weight: jax.Array


class Texts:
    """The texts of a run with the base model's hidden states, in host memory."""

    def __init__(
        self, texts: Sequence[Text], length: int, hidden: np.ndarray, seed: int
    ) -> None:
        """Stores texts with their hidden states.

        Args:
          texts: at least one.
          length: tokens of a row.
          hidden: the base model's final hidden states on `batch(texts, length)`,
            float32 [N, length, D].
          seed: seed of the order.
        """
        self._rows = batch(texts, length) | {"base_hidden": hidden}
        self._seed = seed

    def at(self, step: int, count: int, rows: Sequence[int] | None = None) -> Batch:
        """Returns the rows of one step, in an order that is shuffled in each epoch.

        They only depend on the step's number, so that a resumed run has the same rows.

        Args:
          step: counted from 1.
          count: rows of a step over all processes.
          rows: which of them this process makes; None for all.
        """
        drawn = range((step - 1) * count, step * count)
        chosen = [self._order(place) for place in drawn]
        mine = [chosen[row] for row in (range(count) if rows is None else rows)]
        return {name: x[mine] for name, x in self._rows.items()}

    def _order(self, place: int) -> int:
        epoch, within = divmod(place, len(self._rows["tokens"]))
        return int(_shuffled(self._seed, epoch, len(self._rows["tokens"]))[within])


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def rows_of_step(batch_size: int, row_shards: int, asked: int = 0) -> int:
    """Returns the number of texts beside a batch of the task.

    Args:
      batch_size: rows of the batch.
      row_shards: the mesh needs a multiple of this many rows.
      asked: the wanted number; 0 for half of the batch.
    """
    return round_up(asked or (batch_size + 1) // 2, row_shards)


def head(params: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> Any:
    """Returns the base model's head, before training.

    Args:
      params: the parameters to train; with LoRA, the factors.
      frozen: with LoRA, the parameters of the model, which include the head.

    Returns:
      A copy, since the first step donates `params`; with LoRA, the frozen head itself.
    """
    if frozen is not None:
        return head_of(frozen)
    return jax.tree.map(jnp.copy, head_of(params))


def hidden_of_both(
    model: Decoder, task: Mapping[str, jax.Array], own: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Runs a batch of the task and one of replayed texts through the layers together.

    A single pass needs one set of gradients; with two passes, the gradients of the
    first would have to be stored during the second.

    Returns:
      Their final hidden states, [B, T, D] and [R, T, D].
    """
    names = ("tokens", "positions", "segments")
    tokens, positions, segments = (
        sharding.beside(task[name], own[name], model.mesh) for name in names
    )
    hidden = model.hidden(tokens, positions, causal_mask(segments))
    return sharding.apart(hidden, task["tokens"].shape[0], model.mesh)


def summed_divergence(
    model: Decoder,
    base: Decoder,
    hidden_RxTxD: jax.Array,
    own: Mapping[str, jax.Array],
    batch_rows: int,
) -> jax.Array:
    """Returns the divergence from the base model, summed over predictions that count.

    Args:
      model: computes logits from `hidden_RxTxD`.
      base: computes logits from the stored hidden states.
      hidden_RxTxD: the model's final hidden states on the texts.
      own: the texts, as in `Term`.
      batch_rows: B, rows of the task's batch. The number of tokens that are processed
        at a time is such that their logits and intermediate values need no more memory
        than the logits of that batch.

    Returns:
      A float32 scalar.
    """

    @jax.checkpoint  # The logits are computed again in the backward pass.
    def part(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, base_hidden = x
        logits = model.logits(hidden)
        base_logits = base.logits(base_hidden.astype(hidden.dtype))
        return forward_kl(jax.lax.stop_gradient(base_logits), logits)

    arrays = hidden_RxTxD, own["base_hidden"]
    tokens = batch_rows * hidden_RxTxD.shape[1] // _ARRAYS
    divergence_RxT = sharding.by_parts(part, arrays, tokens)
    return jnp.sum(divergence_RxT, where=loss_targets(own)[1])


def base_model(graph: nnx.GraphDef, states: Sequence[Any], term: Term) -> Decoder:
    """Returns a model with the base model's head, whose layers must not be used.

    Args:
      graph: the model's structure.
      states: the parts of its parameters, None for an empty one.
      term: with the head.
    """
    *parts, last = [dict(part) for part in states if part is not None]
    return nnx.merge(graph, *parts, {**last, **term.head})
