"""Faults of processes: signals, kills, and two runs at once."""

import pathlib
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.faults.lab import ARM, LAST, NEWEST, Case, Lab, Outcome
from tests.finetune import small
from tests.hosts import processes as several

KILLS = 20
# Long enough that the run is not complete after twenty kills.
LONG = ("--steps", "300")
SEED = 0

Ready = Callable[[Lab, pathlib.Path], object]


def _logged(lab: Lab, run: pathlib.Path) -> bool:
    return len(lab.rows(run)) >= 1


def saving(lab: Lab, run: pathlib.Path) -> bool:
    """Returns whether a checkpoint is being written."""
    return any(lab.checkpoint(run).parent.glob("*orbax-checkpoint-tmp*"))


def _measuring_base(lab: Lab, run: pathlib.Path) -> bool:
    return (run / "arms" / ARM / "arm.json").exists()


def _all_saved(lab: Lab, run: pathlib.Path) -> bool:
    return lab.checkpoint(run, LAST).is_dir()


def _loading(lab: Lab, run: pathlib.Path) -> bool:
    return (run / "settings.json").exists()


def _signaled(
    lab: Lab, ready: Ready, number: signal.Signals, times: int = 1, *words: str
) -> Outcome:
    run = lab.new()
    process = lab.start(run, *words)
    lab.until(process, lambda: ready(lab, run))
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.05)
    done = lab.end(process)
    assert done.status == 128 + number, f"status {done.status}: {done.errors[-1000:]}"
    assert "Traceback" not in done.errors, done.errors[-1000:]
    assert done.sentence == (
        f"Stopped by {number.name}; the same command goes on from the last checkpoint."
    )
    reached = len(lab.rows(run))
    if times == 1 and reached:
        assert lab.steps(run)[-1:] == [reached], "the last step was not saved"
    went_on = lab.goes_on(run, reached)
    return Outcome(f"status {done.status}; {went_on.happened}", went_on.lost)


def killed(lab: Lab, ready: Ready, *words: str) -> Outcome:
    run = lab.new()
    process = lab.start(run, *words)
    lab.until(process, lambda: ready(lab, run))
    process.kill()
    done = lab.end(process)
    assert done.status == -signal.SIGKILL, "the run had ended before the signal"
    return lab.goes_on(run, len(lab.rows(run)))


def _killed_often(lab: Lab) -> Outcome:
    """Kills a run at random moments from its start, and while it trains and saves."""
    whole, run = lab.new(), lab.new()
    assert lab.run(whole, *LONG).status == 0
    generator, lost, moments, until_training = random.Random(SEED), 0, [], 0.0
    for number in range(KILLS):
        before, began = len(lab.rows(run)), time.monotonic()
        process = lab.start(run, *LONG)
        if number % 2:
            time.sleep(generator.uniform(0, until_training))
        else:
            lab.until(process, lambda before=before: len(lab.rows(run)) > before)
            until_training = time.monotonic() - began
            time.sleep(generator.uniform(0, 1))
        process.kill()
        assert lab.end(process).status == -signal.SIGKILL, (
            "the run had ended before the signal"
        )
        reached, saved = len(lab.rows(run)), (lab.steps(run) or [0])[-1]
        lost += max(reached - saved, 0)
        moments.append(saved)
    done = lab.run(run, *LONG)
    assert done.status == 0, done.errors[-1000:]
    assert lab.digest(run) == lab.digest(whole), "other parameters than unbroken"
    passed = ", ".join(map(str, moments))
    return Outcome(
        f"killed {KILLS} times with these last checkpoints: {passed}; then it ended "
        "with the unbroken run's parameters",
        f"{lost} steps of {LONG[1]}, done again",
    )


def _two_at_once(lab: Lab) -> Outcome:
    run = lab.half_done()
    first = lab.start(run)
    # A run with other settings rewrites this file as soon as it holds the directory.
    old = (run / "settings.json").stat().st_ino
    lab.until(first, lambda: (run / "settings.json").stat().st_ino != old)
    second = lab.refused(lab.run(run), "is in use", "another process works there")
    assert first.poll() is None, "the first had ended before the second came"
    done = lab.end(first)
    assert done.status == 0, done.errors[-1000:]
    assert lab.digest(run) == lab.sha256, "other parameters than unbroken"
    return Outcome(f"the second: {second.happened}; the first: unharmed")


def _one_of_two(lab: Lab, number: signal.Signals) -> Outcome:
    """Signals one of two processes after the second step has been saved."""
    place = lab.new()
    small.write_model(place / "tiny-llama")

    def run(name: str, **options: Any) -> several.Run:
        told = {"mesh": "fsdp=2,tensor=2", "everywhere": {"train_only": True}}
        return several.run(place, name, 2, 2, **told, **options)

    whole = run("whole")
    broken = run("run", watch={1: {"signal": [2, number]}})
    again = run("run")
    first, second = broken.ended
    if number == signal.SIGKILL:
        assert second.status == -number, second.errors[-1000:]
        happened = f"the other: status {first.status}, {several.check_lost(first)}"
    else:
        statuses = [ended.status for ended in broken.ended]
        assert statuses == [128 + number] * 2, first.errors[-1000:]
        happened = f"both: status {first.status}"
    (restored,) = again.ended[1].seen["restored"]
    digests = [made.summary["arms"][ARM]["params_checksum"] for made in (whole, again)]
    assert digests[0] == digests[1], "other parameters than unbroken"
    step = restored[0]
    assert step == (2 if number == signal.SIGKILL else NEWEST)
    return Outcome(
        f"{happened}; both went on from step {step} to the unbroken run's parameters"
    )


def _twice(lab: Lab) -> Outcome:
    run = lab.new()
    assert lab.run(run).status == 0
    assert lab.digest(run) == lab.sha256
    return Outcome("the same params_checksum")


_LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
runpy.run_module("examples.finetune", run_name="__main__", alter_sys=True)
"""


def _limited_file_size(lab: Lab) -> Outcome:
    run = lab.half_done()
    refused = lab.refused(lab.run(run, program=("-c", _LIMITED)), noisy=True)
    went_on = lab.goes_on(run)
    return Outcome(f"{refused.happened}; then {went_on.happened}", went_on.lost)


_STOPS = "saves after the step and ends with status {}; then goes on bit for bit"
GOES_ON = "the same command goes on bit for bit"
_RARELY = ("--checkpoint-every", "100")


def _case(
    fault: str, promise: str, work: Callable[..., Outcome], *given: object
) -> Case:
    return Case(fault, promise, lambda lab: work(lab, *given))


CASES = [
    Case(
        "SIGTERM while it trains, no checkpoint due",
        _STOPS.format(143),
        lambda lab: _signaled(lab, _logged, signal.SIGTERM, 1, *_RARELY),
        quick=True,
    ),
    _case(
        "SIGINT while it trains", _STOPS.format(130), _signaled, _logged, signal.SIGINT
    ),
    _case(
        "SIGINT twice while it trains",
        "ends at once with status 130; then goes on bit for bit",
        *(_signaled, _logged, signal.SIGINT, 2),
    ),
    _case(
        "SIGTERM while a checkpoint is written",
        _STOPS.format(143),
        *(_signaled, saving, signal.SIGTERM),
    ),
    _case(
        "SIGTERM while the model is loaded",
        "ends with status 143; then goes on bit for bit",
        *(_signaled, _loading, signal.SIGTERM),
    ),
    _case(
        "SIGTERM while the base model is measured",
        "ends with status 143; then goes on bit for bit",
        *(_signaled, _measuring_base, signal.SIGTERM),
    ),
    Case(
        "SIGKILL while it trains",
        GOES_ON,
        lambda lab: killed(lab, _logged),
        quick=True,
    ),
    _case("SIGKILL while a checkpoint is written", GOES_ON, killed, saving),
    _case("SIGKILL while the base model is measured", GOES_ON, killed, _measuring_base),
    _case("SIGKILL after the last checkpoint", GOES_ON, killed, _all_saved),
    _case("SIGKILL before the first checkpoint", GOES_ON, killed, _logged, *_RARELY),
    Case(
        f"{KILLS} SIGKILLs at random moments of one run of {LONG[1]} steps",
        GOES_ON,
        _killed_often,
    ),
    _case(
        "SIGKILL of one of two processes",
        "the other ends and says what to do; then both go on bit for bit",
        *(_one_of_two, signal.SIGKILL),
    ),
    _case(
        "SIGTERM to one of two processes",
        "both save after the step and end with status 143; then go on bit for bit",
        *(_one_of_two, signal.SIGTERM),
    ),
    Case(
        "two runs started in one directory",
        "the second ends in a sentence, the first is unharmed",
        _two_at_once,
        quick=True,
    ),
    Case(
        "the same command twice, in two directories",
        "the same params_checksum",
        _twice,
        quick=True,
    ),
    Case(
        "files may not grow beyond 20 kB while a checkpoint is written",
        "ends in a sentence; without the limit goes on bit for bit",
        _limited_file_size,
        quick=True,
    ),
]
