"""A run small enough for a test: the real command on the tiny model."""

import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.llama import causal_mask
from tests.finetune import tiny

ROOT = pathlib.Path(__file__).parents[2]


def write_model(directory: pathlib.Path) -> pathlib.Path:
    """Writes the tiny model with a context that holds a problem byte by byte."""
    return tiny.write_model(directory, tiny.CONFIG | {"max_position_embeddings": 512})


def options(model: pathlib.Path, output: pathlib.Path) -> list[str]:
    """The options of a run of four steps; batches fit eight devices."""
    return [
        *("--model", str(model), "--output", str(output), "--scan-layers"),
        *("--steps", "4", "--warmup-steps", "1", "--checkpoint-every", "1"),
        *("--batch-size", "8", "--sequence-length", "256"),
        *("--training-problems", "16", "--evaluation-problems", "4"),
        *("--knowledge-questions", "4", "--retention-sequences", "2"),
        *("--max-new-tokens", "8"),
    ]


def start(*arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, on simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "examples.finetune", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, devices: int = 1) -> tuple[int, str, str]:
    """Runs the command to its end: exit status, standard output, standard error."""
    process = start(*arguments, devices=devices)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


@functools.partial(jax.jit, static_argnames="graph")
def _logits(graph: nnx.GraphDef, params: Any, ids_1xT: jax.Array) -> jax.Array:
    positions_1xT = jnp.arange(ids_1xT.shape[1])[None]
    mask = causal_mask(jnp.ones_like(ids_1xT))
    return nnx.merge(graph, params)(ids_1xT, positions_1xT, mask)


def logits(graph: nnx.GraphDef, params: Any, ids: Sequence[int]) -> np.ndarray:
    """The logits [T, V] of one sequence of at most 32 tokens, alone and uncached."""
    # One shape for all: a causal model does not see the padding that comes later.
    ids_1xT = np.zeros((1, 32), np.int32)
    ids_1xT[0, : len(ids)] = ids
    return np.asarray(_logits(graph, params, ids_1xT))[0, : len(ids)]
