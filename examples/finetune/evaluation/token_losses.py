"""Loss per token, and the divergence of predictions from the base model's.

Both are computed in one pass. The base model runs once. Its final hidden states are
stored, which have a few hundred numbers per token instead of tens of thousands of
logits, and its head computes logits from them for each comparison.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.finetune.command.errors import InputError
from examples.finetune.data.batches import Batch, evaluation_batches, loss_targets
from examples.finetune.data.encoding import Example
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.sharding import Place, by_parts, row_shards
from examples.finetune.system.files import replacing
from examples.finetune.system.hosts import fetch

# Rows in one pass, which reads all of the weights for any number of rows.
ROWS = 8
# Tokens whose logits a device has at the same time. Those of all tokens of a batch can
# need more memory than training.
TOKENS = 512

Hidden = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class TokenSet:
    """A text for measurements.

    Attributes:
      name: the name of the measurements.
      batches: arrays [B, T]: `tokens`, `positions`, `segments`, `targets` int32;
        `loss_weights` and `divergence_weights` float32, 1 where the prediction counts.
    """

    name: str
    batches: tuple[Batch, ...]

    @classmethod
    def of(
        cls,
        name: str,
        examples: Sequence[Example],
        *,
        batch_size: int,
        sequence_length: int,
        divergence: Literal["prompts", "all"],
    ) -> "TokenSet":
        """Makes a set from examples.

        Args:
          name: the name of the set.
          examples: tokenised rows, each of at most `sequence_length` tokens.
          batch_size: rows of a batch.
          sequence_length: as for `data.evaluation_batches`.
          divergence: whether to compare with the base model where the next token
            belongs to a prompt, or at every token. The loss always uses the tokens that
            carry loss.
        """
        batches = evaluation_batches(
            examples, batch_size=batch_size, sequence_length=sequence_length
        )
        return cls(name, tuple(_weighted(batch, divergence) for batch in batches))


def _weighted(batch: Batch, divergence: str) -> Batch:
    targets_BxT, loss_BxT = loss_targets(batch)
    _, prompt_BxT = loss_targets({**batch, "loss_mask": ~batch["loss_mask"]})
    divergence_BxT = prompt_BxT if divergence == "prompts" else prompt_BxT | loss_BxT
    return {
        **{name: batch[name] for name in ("tokens", "positions", "segments")},
        "targets": np.asarray(targets_BxT, np.int32),
        "loss_weights": np.asarray(loss_BxT, np.float32),
        "divergence_weights": np.asarray(divergence_BxT, np.float32),
    }


def head_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters that compute logits from hidden states."""
    name = "head" if "head" in params else "embed"
    return {name: params[name]}


@functools.partial(jax.jit, static_argnames="graph")
def row_sums(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    base_head: Mapping[str, Any],
    base_hidden_BxTxD: jax.Array,
    batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measures a model on one batch.

    Args:
      graph: the model's structure.
      params: its parameters.
      base_head: the base model's `head_of`.
      base_hidden_BxTxD: its final hidden states.
      batch: a batch of `TokenSet`.

    Returns:
      The losses and the forward KL, each summed over a row's tokens that count, float32
      [B]; the model's final hidden states, float32 [B, T, D].
    """
    model = nnx.merge(graph, params)
    hidden_BxTxD = model.hidden(
        batch["tokens"], batch["positions"], causal_mask(batch["segments"])
    )
    base = nnx.merge(graph, {**params, **base_head})

    def compare(
        given: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        hidden, base_hidden, targets = given
        logits = model.logits(hidden)
        base_logits = base.logits(base_hidden.astype(hidden.dtype))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return loss, forward_kl(base_logits, logits)

    losses_BxT, divergence_BxT = by_parts(
        compare,
        (hidden_BxTxD, base_hidden_BxTxD, batch["targets"]),
        TOKENS * row_shards(model.mesh),
    )
    return (
        jnp.sum(losses_BxT * batch["loss_weights"], axis=1),
        jnp.sum(divergence_BxT * batch["divergence_weights"], axis=1),
        hidden_BxTxD.astype(jnp.float32),
    )


def forward_kl(base_logits: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns the Kullback-Leibler divergence from the base model's predictions, in
    nats.

    Args:
      base_logits: the base model's logits, [..., V].
      logits: another model's logits, of the same shape.

    Returns:
      [...].
    """
    base_log = jax.nn.log_softmax(base_logits)
    return jnp.sum(jnp.exp(base_log) * (base_log - jax.nn.log_softmax(logits)), -1)


@functools.partial(jax.jit, static_argnames="graph")
def _hidden(
    graph: nnx.GraphDef, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> jax.Array:
    hidden_BxTxD = nnx.merge(graph, params).hidden(
        batch["tokens"], batch["positions"], causal_mask(batch["segments"])
    )
    return hidden_BxTxD.astype(jnp.float32)


def hidden_states(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    batch: Batch,
    place: Place,
    batch_size: int,
) -> np.ndarray:
    """Returns the final hidden states of a model, from which its head computes logits.

    Args:
      graph: the model's structure.
      params: its parameters.
      batch: `tokens`, `positions` and `segments`, [B, T].
      place: a function that puts a batch on the devices.
      batch_size: rows of a batch.

    Returns:
      float32 [B, T, D].
    """
    found = []
    rows = len(batch["tokens"])
    for start in range(0, rows, batch_size):
        names = ("tokens", "positions", "segments")
        part = {name: batch[name][start : start + batch_size] for name in names}
        missing = batch_size - len(part["tokens"])
        part = {name: np.pad(x, ((0, missing), (0, 0))) for name, x in part.items()}
        found.append(fetch(_hidden(graph, params, place(part)))[: batch_size - missing])
    return np.concatenate(found)


def measure(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    tokens: TokenSet,
    place: Place,
    base_head: Mapping[str, Any],
    base_hidden: Hidden | None,
) -> tuple[float, float | None, Hidden]:
    """Measures one model on one set.

    Args:
      graph: the model's structure.
      params: its parameters.
      tokens: the set.
      place: a function that puts a batch on the devices.
      base_head: the base model's `head_of`.
      base_hidden: its hidden states on this set; None to measure the base model itself.

    Returns:
      The mean loss per token; the mean forward KL from the base model in nats per
      token, None if the set has no token for comparison; the hidden states, a float32
      array [B, T, D] for each batch.
    """
    losses, divergences, hidden = measure_rows(
        graph, params, tokens, place, base_head, base_hidden
    )
    mean_loss = float(losses.sum()) / _total(tokens, "loss_weights")
    compared_tokens = _total(tokens, "divergence_weights")
    mean_kl = float(divergences.sum()) / compared_tokens if compared_tokens else None
    return mean_loss, mean_kl, hidden


def measure_rows(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    tokens: TokenSet,
    place: Place,
    base_head: Mapping[str, Any],
    base_hidden: Hidden | None,
) -> tuple[np.ndarray, np.ndarray, Hidden]:
    """Measures one model on each row of one set.

    Args:
      graph: as for `measure`, like the other arguments.

    Returns:
      The losses and the forward KL, each summed over a row's tokens, float64 [rows],
      including rows of padding; the hidden states.
    """
    losses, divergences, hidden = [], [], []
    for number, batch in enumerate(tokens.batches):
        if base_hidden is None:
            width = jax.tree.leaves(params["final_norm"])[0].shape[-1]
            compared = np.zeros((*batch["tokens"].shape, width), np.float32)
        else:
            compared = base_hidden[number]
        placed = place({**batch, "base_hidden": compared})
        loss_B, divergence_B, states = row_sums(
            graph, params, base_head, placed.pop("base_hidden"), placed
        )
        losses.append(fetch(loss_B).astype(np.float64))
        divergences.append(fetch(divergence_B).astype(np.float64))
        hidden.append(fetch(states))
    return np.concatenate(losses), np.concatenate(divergences), hidden


def _total(tokens: TokenSet, weights: str) -> float:
    return float(sum(batch[weights].sum() for batch in tokens.batches))


def save_hidden(path: pathlib.Path, hidden: Mapping[str, Hidden]) -> None:
    """Writes hidden states by name of the set to an .npz file, atomically."""
    arrays = {
        f"{name}/{number}": array
        for name, batches in hidden.items()
        for number, array in enumerate(batches)
    }
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_hidden(path: pathlib.Path) -> dict[str, Hidden]:
    """Reads the file of `save_hidden`.

    Raises:
      InputError: the file is damaged or missing.
    """
    hidden: dict[str, Hidden] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                hidden.setdefault(key.rpartition("/")[0], []).append(arrays[key])
    # A damaged file may cause errors of NumPy, zipfile, zlib and the system.
    except Exception as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and it is computed again"
        ) from error
    return hidden
