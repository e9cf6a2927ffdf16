"""Replay: training keeps close to the base model's predictions on its own texts.

Beside the task's loss a step minimises the forward Kullback-Leibler divergence from the
base model on texts that the base model wrote. Its predictions are stored as its final
hidden states, a few hundred numbers a token where logits would be tens of thousands;
its head, kept on the devices, turns them into logits in each step, a part of the tokens
at a time.

The idea is from https://arxiv.org/abs/2605.26097 and its predecessors.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.data.batches import Batch
from examples.finetune.evaluation.token_losses import forward_kl, head_of
from examples.finetune.model import sharding
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.decoder import Decoder
from examples.finetune.training.own_text import Text, batch

# Arrays of the size of a part's logits that are alive at once: both models' logits,
# what the divergence makes of them, and gradients.
_ARRAYS = 8


class Term(NamedTuple):
    """What a step of training needs for its term of replay.

    Attributes:
      rows: one batch of texts: `tokens`, `positions`, `segments` int32 and `loss_mask`
        bool [R, T], `base_hidden` float32 [R, T, D].
      head: the base model's parameters that make logits of hidden states.
      weight: of the mean divergence, float32 scalar.
    """

    rows: Mapping[str, jax.Array]
    head: Mapping[str, Any]
    weight: jax.Array


class Texts:
    """The texts of a run with the base model's hidden states, in host memory."""

    def __init__(
        self, texts: Sequence[Text], length: int, hidden: np.ndarray, seed: int
    ) -> None:
        """Keeps texts.

        Args:
          texts: at least one.
          length: tokens of a row.
          hidden: the base model's final hidden states on `batch(texts, length)`,
            float32 [N, length, D].
          seed: decides the order.
        """
        self._rows = batch(texts, length) | {"base_hidden": hidden}
        self._seed = seed

    def at(self, step: int, count: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows of one step, in an order that is shuffled anew each epoch.

        They depend on the step's number alone, so a run that is resumed gets the rows
        that it would have got.

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


def head(params: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> Any:
    """The base model's head, as long as training has not begun.

    Args:
      params: what will be trained; under LoRA its factors.
      frozen: under LoRA the parameters of the model, of which the head is a part.

    Returns:
      A copy, since the first step donates `params`; under LoRA the frozen head itself.
    """
    if frozen is not None:
        return head_of(frozen)
    return jax.tree.map(jnp.copy, head_of(params))


def counted(rows: Mapping[str, jax.Array]) -> jax.Array:
    """Which predictions count: those of tokens that the model wrote. bool [R, T]."""
    written = jnp.roll(rows["loss_mask"], -1, axis=1).at[:, -1].set(False)
    return written & (rows["segments"] != 0)


def hidden_of_both(
    model: Decoder, task: Mapping[str, jax.Array], own: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Runs a batch of the task and one of own texts through the layers, in one pass.

    One pass needs one set of gradients: after two, those of the first would have to be
    kept during the second.

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
    """The divergence from the base model, summed over the predictions that count.

    Args:
      model: turns `hidden_RxTxD` into logits.
      base: turns the stored hidden states into logits.
      hidden_RxTxD: the model's final hidden states on the texts.
      own: the texts, as in `Term`.
      batch_rows: B, rows of the task's batch. Logits are computed for so many tokens at
        a time that they and what is made of them take no more memory than the logits
        of that batch.

    Returns:
      A float32 scalar.
    """
    R, T = hidden_RxTxD.shape[:2]
    least = -(-_ARRAYS * R // batch_rows)
    parts = next(n for n in range(least, T + 1) if T % n == 0) if least <= T else T

    @jax.checkpoint  # The logits are computed again in the backward pass.
    def part(x: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden, base_hidden, mask = x
        logits = model.logits(hidden)
        base_logits = base.logits(base_hidden.astype(hidden.dtype))
        divergence = forward_kl(jax.lax.stop_gradient(base_logits), logits)
        return jnp.sum(divergence, where=mask)

    given = (hidden_RxTxD, own["base_hidden"], counted(own))
    if parts == 1:
        return part(given)
    cut = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(R, parts, T // parts, *x.shape[2:]), 0, 1),
        given,
    )
    return jnp.sum(jax.lax.map(part, cut))


def base_model(graph: nnx.GraphDef, states: Sequence[Any], term: Term) -> Decoder:
    """A model whose head is the base model's; its layers are not to be used.

    Args:
      graph: the model's structure.
      states: the parts of its parameters, None for an empty one.
      term: with the head.
    """
    *parts, last = [dict(part) for part in states if part is not None]
    return nnx.merge(graph, *parts, {**last, **term.head})
