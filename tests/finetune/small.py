"""A run small enough for a test: the real command on the tiny model."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.finetune.model.attention import causal_mask
from tests.finetune import tiny
from tests.helpers import UNOPTIMIZED_FLAGS

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
        *("--training-rows", "16", "--evaluation-rows", "4"),
        *("--knowledge-questions", "4", "--retention-sequences", "2"),
        *("--max-new-tokens", "8", "--optimizer", "adamw", "mofo"),
    ]


# The real command, which is sent a real signal as soon as it has saved its second step.
INTERRUPTED = """
import os, signal, sys
from examples.finetune import __main__ as command
from examples.finetune.storage import checkpoints

save = checkpoints.ArmFiles.save

def save_and_interrupt(files, position, *rest):
    save(files, position, *rest)
    if position.step == 2:
        os.kill(os.getpid(), signal.SIGINT)

checkpoints.ArmFiles.save = save_and_interrupt
# Whoever runs the tests in the background may have had the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(command.main(sys.argv[1:]))
"""


# What one process has compiled the next ones read.
_COMPILED = tempfile.TemporaryDirectory()


def compiled_in(directory: str, devices: int = 1) -> dict[str, str]:
    """The environment of processes that share what they compile.

    Args:
      directory: for the compiled programs.
      devices: of each process.
    """
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        f" {UNOPTIMIZED_FLAGS}",
        "JAX_COMPILATION_CACHE_DIR": directory,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def run(*arguments: str) -> tuple[int, str, str]:
    """Runs the command in a process of its own.

    Args:
      arguments: Its options.

    Returns:
      Exit status, standard output, standard error.
    """
    process = subprocess.run(
        [sys.executable, "-m", "examples.finetune", *arguments],
        cwd=ROOT,
        env={**os.environ, **compiled_in(_COMPILED.name)},
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout, process.stderr


@functools.partial(jax.jit, static_argnames="graph")
def _logits(graph: nnx.GraphDef, params: Any, ids_1xT: jax.Array) -> jax.Array:
    positions_1xT = jnp.arange(ids_1xT.shape[1])[None]
    mask = causal_mask(jnp.ones_like(ids_1xT))
    return nnx.merge(graph, params)(ids_1xT, positions_1xT, mask)


def logits(
    graph: nnx.GraphDef, params: Any, ids: Sequence[int], longest: int = 32
) -> np.ndarray:
    """The logits [T, V] of one sequence of at most so many tokens, uncached."""
    # One shape for all: a causal model does not see the padding that comes later.
    ids_1xT = np.zeros((1, longest), np.int32)
    ids_1xT[0, : len(ids)] = ids
    return np.asarray(_logits(graph, params, ids_1xT))[0, : len(ids)]
