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
    """A compiled step, with the time of its compilation.

    Attributes:
      compiled: the program, to be called with arrays.
      lowering_seconds: time from Python to the compiler's input.
      compile_seconds: time from there to the program.
      text: the program as HLO; empty if it was not requested.
      buffers: the compiler's assignment of buffers; empty without `text`.
    """

    compiled: jax.stages.Compiled
    lowering_seconds: float
    compile_seconds: float
    text: str = ""
    buffers: str = ""

    @property
    def argument_bytes(self) -> int | None:
        """Memory of the arguments on each device, if known; the results reuse the
        memory of donated ones."""
        memory = self.compiled.memory_analysis()
        return memory.argument_size_in_bytes if memory else None

    @property
    def temporary_bytes(self) -> int | None:
        """Memory on each device apart from arguments and results, if known."""
        if self.buffers:
            # `memory_analysis` on TPU counts the gaps between buffers twice.
            return hlo.temporary_bytes(self.buffers)
        memory = self.compiled.memory_analysis()
        return memory.temp_size_in_bytes if memory else None


def bare_step(optimizer: optax.GradientTransformation) -> Step:
    """Returns the optimizer's step, `(params, state, grads) -> (params, state)`."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        # In argument order, since donation pairs buffers by position.
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
    """Compiles a step whose first two arguments are donated.

    Args:
      step: the function to compile.
      params: abstract parameters; the other arguments are abstract too.
      state: the optimizer's state.
      last: gradients or a batch.
      keep_text: whether to keep the program's text.
      options: the compiler's options.
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
    """Returns the free memory of the first device in bytes, None if unknown."""
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
