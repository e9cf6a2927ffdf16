"""Donated steps of an optimizer, compiled for abstract parameters."""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from examples.benchmarks import hlo

Step = Callable[..., tuple[Any, ...]]


class Program(NamedTuple):
    """A compiled step, and what making it took.

    Attributes:
      compiled: to be called with arrays.
      lowering_seconds: from Python to the compiler's input.
      compile_seconds: from there to the program.
      text: the program as HLO; empty if it was not asked for.
      buffers: where the compiler puts what it computes; empty without `text`.
    """

    compiled: jax.stages.Compiled
    lowering_seconds: float
    compile_seconds: float
    text: str = ""
    buffers: str = ""

    @property
    def argument_bytes(self) -> int | None:
        """Memory of the arguments on each device, where it is known; donated ones
        become results."""
        memory = self.compiled.memory_analysis()
        return memory.argument_size_in_bytes if memory else None

    @property
    def temporary_bytes(self) -> int | None:
        """Memory on each device beside arguments and results, where it is known."""
        if self.buffers:
            # A TPU's `memory_analysis` adds the gaps between buffers a second time.
            return hlo.temporary_bytes(self.buffers)
        memory = self.compiled.memory_analysis()
        return memory.temp_size_in_bytes if memory else None


def bare_step(optimizer: optax.GradientTransformation) -> Step:
    """The optimizer's whole step, `(params, state, grads) -> (params, state)`."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        # In the order in which they came: donated buffers are paired in order.
        return optax.apply_updates(params, updates), state

    return step


def build(
    step: Step,
    params: Any,
    state: Any,
    last: Any,
    keep_text: bool = False,
    options: Mapping[str, str] | None = None,
) -> Program:
    """Compiles a step that is given its first two arguments for good.

    Args:
      step: to compile.
      params: abstract arrays, as are the others.
      state: of the optimizer.
      last: gradients or a batch.
      keep_text: whether the program's text is wanted.
      options: of the compiler.
    """
    wanted: dict[str, Any] = {**(options or {})}
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, last)
    middle = time.perf_counter()
    if not keep_text:
        compiled = lowered.compile(compiler_options=wanted)
        return Program(compiled, middle - start, time.perf_counter() - middle)
    with tempfile.TemporaryDirectory() as directory:
        # `as_text` fails for programs with some asynchronous collectives.
        wanted |= {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=wanted)
        seconds = time.perf_counter() - middle
        text, buffers = (
            next(pathlib.Path(directory).glob(f"*after_optimizations{what}.txt"))
            for what in ("", "-buffer-assignment")
        )
        return Program(
            *(compiled, middle - start, seconds, text.read_text(), buffers.read_text())
        )


def free_bytes() -> int | None:
    """Memory that new arrays can take on the first device, None if unknown."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
