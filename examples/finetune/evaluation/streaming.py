"""Decoding one token after another, for somebody who reads along."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.data.batches import round_up
from examples.finetune.evaluation.generate import LENGTH_STEP
from examples.finetune.model.attention import Cache, init_cache


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def _advance(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    tokens_1xT: jax.Array,
    positions_1xT: jax.Array,
    mask_1xTxS: jax.Array,
    last: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Returns the likeliest token after the one at `last`, and the new cache."""
    model = nnx.merge(graph, params)
    hidden_1xTxD, cache = model.hidden(tokens_1xT, positions_1xT, mask_1xTxS, cache)
    return jnp.argmax(model.logits(hidden_1xTxD[0, last])), cache


def stream(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> Iterator[int]:
    """Continues a prompt by the likeliest token, as long as no token stops it.

    Args:
      graph: the model's structure, for one device.
      params: its parameters.
      prompt: at least one token id.
      max_new_tokens: the longest continuation.
      stop_ids: tokens that end it, which are not returned.

    Yields:
      The tokens, one by one.
    """
    length = len(prompt)
    # Padded, so that few shapes are compiled.
    padded = round_up(length, LENGTH_STEP)
    slots_S = np.arange(padded + max_new_tokens)
    tokens_1xT = np.zeros((1, padded), np.int32)
    tokens_1xT[0, :length] = prompt
    positions_1xT = np.arange(padded)[None]
    mask_TxS = (slots_S <= positions_1xT.T) & (slots_S < length)
    model = nnx.merge(graph, params)
    cache = init_cache(model.config, 1, len(slots_S), model.dtype)
    last = length - 1
    for step in range(max_new_tokens):
        given = tokens_1xT, positions_1xT, mask_TxS[None], np.int32(last)
        token, cache = _advance(graph, params, *given, cache)
        if int(token) in stop_ids:
            return
        yield int(token)
        # New tokens are behind the padded prompt, at the positions after the prompt.
        tokens_1xT = np.full((1, 1), int(token), np.int32)
        positions_1xT = np.full((1, 1), length + step)
        seen_S = (slots_S < length) | ((slots_S >= padded) & (slots_S <= padded + step))
        mask_TxS, last = seen_S[None], 0
