"""Several steps timed in turn, so that a drift of the machine meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

Seconds = dict[str, list[float]]

# A step that is slower than this is not warmed up a second time.
SLOW = 1.0


def seconds_of(step: Callable[[], object]) -> float:
    """How long one call takes."""
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
    """Times steps in rounds, each step once a round.

    Args:
      steps: each returns when its work is done. Quick ones are called twice before
        they count, slow ones once.
      rounds: timed calls of each step.
      seconds: a step that would take longer than this in all gets fewer rounds, at
        least one, by the time of its first call.
      description: of the progress bar.
      pause: seconds before each timed call.

    Returns:
      For each step its times, by round; slow steps took part in the first rounds only.
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
    """The least, median and greatest ratio of times of the same round."""
    # One may have taken part in fewer rounds.
    ratios = [one / other for one, other in zip(ours, theirs, strict=False)]
    return [min(ratios), statistics.median(ratios), max(ratios)]


def rows(taken: Seconds, baseline: str) -> dict[str, dict[str, Any]]:
    """For each step its median seconds, rounds, and ratio to the baseline's step."""
    return {
        name: {
            "seconds": statistics.median(times),
            "rounds": len(times),
            "ratio": ratio(times, taken[baseline]),
        }
        for name, times in taken.items()
    }
