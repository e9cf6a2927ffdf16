"""The Fisher information of the base model, on text that it wrote itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mofo_jax
from examples.finetune.command.config import Config
from examples.finetune.data.batches import loss_targets
from examples.finetune.evaluation import evaluate
from examples.finetune.evaluation.generate import decode
from examples.finetune.model.tokenizer import Tokenizer
from examples.finetune.system.hosts import fetch
from examples.finetune.training.train import summed_loss


def of_base(
    config: Config,
    graph: nnx.GraphDef,
    params: Any,
    tokenizer: Tokenizer,
    place: evaluate.Place,
) -> Any:
    """Estimates the diagonal Fisher information of a model, without any data.

    The model writes sequences, from nothing but the token that begins a text; they are
    distributed as its own predictions, as the Fisher information asks.

    Args:
      config: how many sequences, how long, and the seed.
      graph: the model's structure.
      params: its parameters.
      tokenizer: for the tokens that begin and end a text.
      place: puts a batch on the devices.

    Returns:
      A tree like `params`, float32: the mean over sequences of the squared gradient of
      the log-likelihood, for each token of a sequence.
    """
    samples = _written(config, graph, params, tokenizer, place)

    def log_likelihood(params: Any, sample: dict[str, jax.Array]) -> jax.Array:
        batch = {name: row[None] for name, row in sample.items()}
        loss = summed_loss(nnx.merge(graph, params), batch)
        tokens = jnp.maximum(jnp.sum(loss_targets(batch)[1]), 1)
        # Divided by the root, its square is the mean over tokens.
        return -loss / jnp.sqrt(tokens)

    estimate = jax.jit(mofo_jax.baselines.fisher_information, static_argnums=0)
    return estimate(log_likelihood, params, samples)


def _written(
    config: Config,
    graph: nnx.GraphDef,
    params: Any,
    tokenizer: Tokenizer,
    place: evaluate.Place,
) -> dict[str, jax.Array]:
    """Sequences that a model writes, as one batch."""
    rows, length = config.fisher_sequences, config.sequence_length
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    prompts = np.full((rows, 1), first, np.int32)
    begun = place({"prompts": prompts, "lengths": np.ones(rows, np.int32)})
    stops = tuple(sorted(tokenizer.stop_ids))
    answers = decode(
        graph,
        params,
        begun["prompts"],
        begun["lengths"],
        max_new_tokens=length - 1,
        stop_ids=stops,
        key=jax.random.key(config.seed),
    )
    answers = fetch(answers)
    ends = np.cumsum(np.isin(answers, stops), axis=1)
    # The token that ends a text is the last that counts.
    counted = np.concatenate([np.zeros((rows, 1), bool), ends == 0], axis=1)
    counted[:, 1:] |= (ends == 1) & np.isin(answers, stops)
    tokens = np.concatenate([prompts, answers], axis=1)
    segments = (counted | (np.arange(length) == 0)).astype(np.int32)
    return place(
        {
            "tokens": tokens,
            "loss_mask": counted,
            "segments": segments,
            "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        }
    )
