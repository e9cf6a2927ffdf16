"""Steps timed in turn, so that changes of the machine's speed affect all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

Seconds = dict[str, list[float]]

# Steps that take more seconds than this are warmed up only once.
SLOW = 1.0


def seconds_of(step: Callable[[], object]) -> float:
    """Returns the duration of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    description: str,
    pause: float = 0.0,
) -> Seconds:
    """Times steps in rounds, each step once per round.

    Args:
      steps: functions that return when their work is done. Quick ones are called
        twice before they are timed, slow ones once.
      rounds: number of timed calls of each step.
      seconds: a step whose calls would take longer than this in total gets fewer
        rounds, but at least one, judged by its first call.
      description: text of the progress bar.
      pause: seconds to wait before each timed call.

    Returns:
      The times of each step, by round; slow steps take part in the first rounds only.
    """
    wanted = {}
    for name, step in steps.items():
        first = seconds_of(step)
        if first < SLOW:
            first = seconds_of(step)
        wanted[name] = max(1, min(rounds, int(seconds / first)))
    taken: Seconds = {name: [] for name in steps}
    with tqdm.tqdm(total=sum(wanted.values()), desc=description, unit="step") as bar:
        for number in range(rounds):
            for name, step in steps.items():
                if number < wanted[name]:
                    time.sleep(pause)
                    taken[name].append(seconds_of(step))
                    bar.update()
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns the least, median and greatest ratio of times in the same round."""
    # One of them may have taken part in fewer rounds.
    ratios = [one / other for one, other in zip(ours, theirs, strict=False)]
    return [min(ratios), statistics.median(ratios), max(ratios)]


def rows(taken: Seconds, baseline: str) -> dict[str, dict[str, Any]]:
    """Returns the median seconds, rounds, and ratio to the baseline of each step."""
    return {
        name: {
            "seconds": statistics.median(times),
            "rounds": len(times),
            "ratio": ratio(times, taken[baseline]),
        }
        for name, times in taken.items()
    }


def bandwidth(size: int) -> dict[str, Any]:
    """Times a program that reads one array of `size` bytes and writes another."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4, jnp.float32)
    # A plain copy may be done by a copy engine instead of a kernel.
    negative = jax.jit(jnp.negative)
    taken = interleaved(
        {"copy": lambda: negative(x).block_until_ready()},
        rounds=20,
        seconds=5.0,
        description="copying",
    )
    row = rows(taken, "copy")["copy"]
    return {"bytes": 2 * size, "seconds": row["seconds"], "rounds": row["rounds"]}
