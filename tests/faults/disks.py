"""Faults of the disk: no free space, no permission to write."""

import os
import pathlib
import subprocess
from collections.abc import Callable

from tests.faults.damage import disk, fill, resize
from tests.faults.directories import SENTENCE
from tests.faults.lab import Case, Lab, Outcome
from tests.faults.processes import saving

Moment = Callable[[Lab, pathlib.Path], Callable[[], object]]


def _begun(lab: Lab, run: pathlib.Path) -> Callable[[], object]:
    def settings() -> int:
        return (run / "settings.json").stat().st_ino

    # A run that holds the directory rewrites its settings.
    old = settings()
    return lambda: settings() != old


def _saves(lab: Lab, run: pathlib.Path) -> Callable[[], object]:
    return lambda: saving(lab, run)


def _full_from_the_start(lab: Lab) -> Outcome:
    run = lab.half_done()
    with disk(run, 300):
        refused = lab.refused(lab.run(run), "needs about", "free")
        resize(run, 100_000)
        went_on = lab.goes_on(run)
    return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)


def _filled(moment: Moment) -> Callable[[Lab], Outcome]:
    """Returns a case in which the disk fills during the run."""

    def work(lab: Lab) -> Outcome:
        run = lab.half_done()
        with disk(run, 3000):
            ready = moment(lab, run)
            process = lab.start(run)
            lab.until(process, ready)
            fill(run)
            done = lab.end(process)
            refused = lab.refused(done, "No space left on device", noisy=True)
            resize(run, 100_000)
            went_on = lab.goes_on(run, len(lab.rows(run)))
        return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)

    return work


def _read_only(lab: Lab) -> Outcome:
    run = lab.half_done()
    subprocess.run(["mount", "--bind", str(run), str(run)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        refused = lab.refused(
            lab.run(run), "cannot be written", "Read-only file system"
        )
    finally:
        subprocess.run(["umount", str(run)], check=True)
    went_on = lab.goes_on(run)
    return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)


def _not_writable(lab: Lab) -> Outcome:
    run = lab.half_done()
    run.chmod(0o555)
    # Without this capability, even the superuser needs permission.
    drop = ("setpriv", "--bounding-set", "-dac_override")
    done = lab.run(run, before=drop if os.geteuid() == 0 else ())
    refused = lab.refused(done, "cannot be written", "Permission denied")
    run.chmod(0o755)
    went_on = lab.goes_on(run)
    return Outcome(f"{refused.happened} Then {went_on.happened}", went_on.lost)


CASES = [
    Case("a disk that is full from the start", SENTENCE, _full_from_the_start),
    Case("a disk that fills before training", SENTENCE, _filled(_begun)),
    Case("a disk that fills while a checkpoint is written", SENTENCE, _filled(_saves)),
    Case("a read-only file system", SENTENCE, _read_only),
    Case("a directory without the right to write", SENTENCE, _not_writable),
]
