"""Decoding in batches, with a key-value cache."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.data.batches import round_up
from examples.finetune.model.attention import Cache, init_cache
from examples.finetune.model.sharding import Place
from examples.finetune.system.hosts import fetch

# Prompts are padded to a multiple of this, to compile for few shapes.
LENGTH_STEP = 16


class _Decoding(NamedTuple):
    """The loop's state: step, last token [B], stopped [B], answers [B, N], cache."""

    step: jax.Array
    last_B: jax.Array
    stopped_B: jax.Array
    answers_BxN: jax.Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens", "stop_ids"))
def decode(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    prompts_BxP: jax.Array,
    lengths_B: jax.Array,
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    key: jax.Array | None = None,
    temperature: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Continues prompts until each has stopped, greedily or by sampling.

    Args:
      graph: the model's structure.
      params: its parameters.
      prompts_BxP: int32 token ids, padded on the right.
      lengths_B: int32, the prompts' lengths; a row of length 0 is not continued.
      max_new_tokens: N, at least 1.
      stop_ids: at least one token id; the first generated one ends a row.
      key: for sampling from the model's predictions; None decodes greedily.
      temperature: the logits of the samples are divided by this positive number.

    Returns:
      int32 [B, N]; after its last token, a row is filled with `stop_ids[0]`.
    """
    model = nnx.merge(graph, params)
    stop = jnp.array(stop_ids)
    B, P = prompts_BxP.shape
    slots_S = jnp.arange(P + max_new_tokens)
    prompt_BxS = slots_S[None, :] < lengths_B[:, None]

    def chosen(
        hidden_BxD: jax.Array, stopped_B: jax.Array, step: jax.Array
    ) -> jax.Array:
        logits_BxV = model.logits(hidden_BxD)
        if key is None:
            tokens_B = jnp.argmax(logits_BxV, axis=-1)
        else:
            drawn = jax.random.fold_in(key, step)
            tokens_B = jax.random.categorical(drawn, logits_BxV / temperature)
        return jnp.where(stopped_B, stop[0], tokens_B.astype(jnp.int32))

    def advance(now: _Decoding) -> _Decoding:
        stopped_B = now.stopped_B | jnp.isin(now.last_B, stop)
        # New tokens follow the longest prompt, with positions that follow their own.
        new_1xS = (slots_S >= P) & (slots_S <= P + now.step)
        hidden_Bx1xD, cache = model.hidden(
            now.last_B[:, None],
            (lengths_B + now.step)[:, None],
            (prompt_BxS | new_1xS[None, :])[:, None, :],
            now.cache,
        )
        step = now.step + 1
        next_B = chosen(hidden_Bx1xD[:, 0], stopped_B, step)
        answers_BxN = now.answers_BxN.at[:, step].set(next_B, mode="drop")
        return _Decoding(step, next_B, stopped_B, answers_BxN, cache)

    def unfinished(now: _Decoding) -> jax.Array:
        going_B = ~(now.stopped_B | jnp.isin(now.last_B, stop))
        return (now.step < max_new_tokens - 1) & jnp.any(going_B)

    causal_PxS = slots_S[None, :] <= jnp.arange(P)[:, None]
    cache = init_cache(model.config, B, P + max_new_tokens, model.dtype)
    positions_BxP = jnp.broadcast_to(jnp.arange(P), (B, P))
    hidden_BxPxD, cache = model.hidden(
        prompts_BxP, positions_BxP, prompt_BxS[:, None, :] & causal_PxS[None], cache
    )
    ends_Bx1x1 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
    stopped_B = lengths_B == 0
    last_BxD = jnp.take_along_axis(hidden_BxPxD, ends_Bx1x1, axis=1)[:, 0]
    first_B = chosen(last_BxD, stopped_B, jnp.zeros((), jnp.int32))
    answers_BxN = jnp.full((B, max_new_tokens), stop[0], jnp.int32)
    start = _Decoding(
        jnp.zeros((), jnp.int32),
        first_B,
        stopped_B,
        answers_BxN.at[:, 0].set(first_B),
        cache,
    )
    return jax.lax.while_loop(unfinished, advance, start).answers_BxN


def answers(
    graph: nnx.GraphDef,
    params: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    place: Place,
    *,
    batch_size: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
    length: int | None = None,
    key: jax.Array | None = None,
    keep_stop: bool = False,
) -> list[list[int]]:
    """Continues any number of prompts, in batches of one shape.

    Args:
      graph: the model's structure.
      params: its parameters.
      prompts: token ids, none empty.
      place: a function that puts a batch on the devices.
      batch_size: rows of a batch.
      max_new_tokens: length of the longest continuation, at least 1.
      stop_ids: tokens that end a continuation.
      length: the padded length of prompts; by default that of the longest, rounded up
        to a multiple of 16.
      key: for sampling from the model's predictions; None decodes greedily.
      keep_stop: whether the token that ends a continuation is part of it.

    Returns:
      The continuation of each prompt.
    """
    longest = max(map(len, prompts))
    length = length or round_up(longest, LENGTH_STEP)
    stops = tuple(sorted(stop_ids))
    continued: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        placed = place(padded(part, batch_size, length, stops[0]))
        written_BxN = decode(
            graph,
            params,
            placed["prompts"],
            placed["lengths"],
            max_new_tokens=max_new_tokens,
            stop_ids=stops,
            key=None if key is None else jax.random.fold_in(key, start),
        )
        written = fetch(written_BxN)[: len(part)]
        continued += [until(ids, stops, keep_stop) for ids in written]
    return continued


def padded(
    prompts: Sequence[Sequence[int]], rows: int, length: int, pad: int
) -> dict[str, np.ndarray]:
    """Returns `prompts` int32 [rows, length] and their `lengths` int32 [rows].

    Args:
      prompts: token ids of at most `rows` prompts; the lengths of other rows are 0.
      rows: the number of rows.
      length: the length of rows.
      pad: the token that fills them.
    """
    batch = {
        "prompts": np.full((rows, length), pad, np.int32),
        "lengths": np.zeros(rows, np.int32),
    }
    for row, prompt in enumerate(prompts):
        batch["prompts"][row, : len(prompt)] = prompt
        batch["lengths"][row] = len(prompt)
    return batch


def until(ids: np.ndarray, stop_ids: Sequence[int], keep_stop: bool) -> list[int]:
    """Returns the tokens before the first one that stops, or up to and including it."""
    stopped = np.flatnonzero(np.isin(ids, stop_ids))
    return ids[: stopped[0] + keep_stop if stopped.size else None].tolist()
