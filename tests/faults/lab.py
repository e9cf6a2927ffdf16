"""Tools for the cases of the fault suite: runs and expectations."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from examples.finetune.__main__ import main
from tests.finetune import small

ARM = "mofo"
# The step of the newest of the template's two checkpoints, and the run's last step.
NEWEST, LAST = 3, 4
# Far longer than any case. A process that does not end is killed, and its case fails.
LONGEST_SECONDS = 300


class Done(NamedTuple):
    """The end of a process."""

    status: int
    shown: str
    errors: str

    @property
    def sentence(self) -> str:
        """The last error that it reports on stderr, or else its last line there."""
        # A thread of another library may have written the beginning of the line.
        named = re.findall(r"error: \S.*", self.errors)
        lines = self.errors.strip().splitlines() or [""]
        return (named or lines)[-1].strip()


class Outcome(NamedTuple):
    """The outcome of a fault."""

    happened: str
    lost: str = "nothing"


class Kind(NamedTuple):
    """A kind of run into which faults are injected.

    Attributes:
      name: its name.
      write_model: writes the model to a directory.
      options: options in addition to those of all kinds.
    """

    name: str
    write_model: Callable[[pathlib.Path], object] = small.write_model
    options: tuple[str, ...] = ()


PLAIN = Kind("run")


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
      fault: the name of the fault.
      promise: the promised outcome.
      work: injects the fault; raises AssertionError if the promise is broken.
      quick: whether pytest runs the case too.
    """

    fault: str
    promise: str
    work: "Callable[[Lab], Outcome]"
    quick: bool = False


class Lab:
    """A directory with a model, an unbroken run, and an interrupted run."""

    def __init__(
        self, path: pathlib.Path, name: str = "run", kind: Kind = PLAIN
    ) -> None:
        """Makes the model and both runs, or finds them.

        Args:
          path: a directory, empty or another lab's.
          name: the name of the runs, if others use the directory too.
          kind: the kind of all runs.
        """
        self.path = path
        self.kind = kind
        self._name = name
        self.model = path / "model"
        # All processes compile the same programs; all but the first read them here.
        self.cache = small.compiled_in(str(path / "compiled"))
        self._names = (f"{name}-{number}" for number in itertools.count(1))
        self.template = path / "template"
        self.unbroken = path / "unbroken"
        if not self.unbroken.exists():
            self._make()
        self.sha256 = self.digest(self.unbroken)
        self._of: dict[Kind, Lab] = {}

    def _make(self) -> None:
        self.kind.write_model(self.model)
        # Signaled after its second step, it saves its third and ends.
        done = self.run(self.template, program=("-c", small.INTERRUPTED))
        assert done.status == 130, done.errors
        assert self.steps(self.template) == [NEWEST - 1, NEWEST]
        done = self.run(self.unbroken)
        assert done.status == 0, done.errors

    def of(self, kind: Kind) -> "Lab":
        """Returns the lab of another kind of run, in a directory within this one's."""
        if kind not in self._of:
            self._of[kind] = Lab(self.path / kind.name, self._name, kind)
        return self._of[kind]

    def new(self) -> pathlib.Path:
        """Returns a path for a run."""
        return self.path / next(self._names)

    def half_done(self) -> pathlib.Path:
        """Returns a copy of the run that was stopped after its third step."""
        return shutil.copytree(self.template, self.new())

    def words(self, run: pathlib.Path) -> list[str]:
        """Returns the options of the run of every case."""
        few = ["--evaluation-rows", "2", "--knowledge-questions", "1"]
        few += ["--max-new-tokens", "0", "--batch-size", "2"]
        few += ["--optimizer", ARM, *self.kind.options]
        return [*small.options(self.model, run), *few]

    def start(
        self,
        run: pathlib.Path,
        *words: str,
        program: Sequence[str] = ("-m", "examples.finetune"),
        before: Sequence[str] = (),
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Starts the command, with additional words in front, in a process group."""
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            # Shells ignore SIGINT in background processes, which would be inherited.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        environment = {**os.environ, **self.cache, **options.pop("env", {})}
        return subprocess.Popen(
            [*before, sys.executable, *program, *self.words(run), *words],
            cwd=small.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def end(self, process: subprocess.Popen[str]) -> Done:
        """Waits for a process, and checks that it leaves none behind."""
        try:
            shown, errors = process.communicate(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            shown, errors = process.communicate()
            raise AssertionError(f"the process did not end: {errors[-500:]}") from None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the process left another one behind")
        return Done(process.returncode, shown, errors)

    def run(self, run: pathlib.Path, *words: str, **options: Any) -> Done:
        """Runs the command to its end."""
        return self.end(self.start(run, *words, **options))

    def until(
        self, process: subprocess.Popen[str], holds: Callable[[], object]
    ) -> None:
        """Waits until a condition holds or the process has ended."""
        end = time.monotonic() + LONGEST_SECONDS
        while not holds() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)

    def goes_on(self, run: pathlib.Path, reached: int = NEWEST) -> Outcome:
        """Continues with the same command and compares the end with the unbroken run.

        Args:
          run: the run directory.
          reached: the last step of the run before.
        """
        done = self.run(run)
        assert done.status == 0, done.errors[-1000:]
        assert self.digest(run) == self.sha256, "other parameters than unbroken"
        assert [row["step"] for row in self.rows(run)] == [*range(1, LAST + 1)]
        found = re.search(rf"{ARM} resumes from step (\d+)", done.shown)
        step = int(found[1]) if found else 0
        said = [line for line in done.errors.splitlines() if "is damaged" in line]
        happened = f"went on from step {step} to the unbroken run's parameters"
        lost = f"{reached - step} of {LAST} steps, done again"
        return Outcome(
            "; ".join([happened, *map(self.plain, said)]),
            lost if reached > step else "nothing",
        )

    def refused(self, done: Done, *words: str, noisy: bool = False) -> Outcome:
        """Checks that the command ended with one sentence that contains certain words.

        Args:
          done: the end of the command.
          words: words in the sentence.
          noisy: whether TensorStore's threads, which fail too, may print messages.
        """
        assert done.status == 2, f"status {done.status}: {done.errors[-1000:]}"
        assert noisy or "Traceback" not in done.errors, done.errors[-1000:]
        assert done.sentence.startswith("error: "), done.errors[-1000:]
        assert done.sentence.endswith("."), done.sentence
        for word in words:
            assert word in done.sentence, f"{word!r} is not in {done.sentence!r}"
        return Outcome(f"status 2, {self.plain(done.sentence)}")

    def refused_here(self, *words: str, says: Sequence[str]) -> Outcome:
        """Checks in this process that invalid input is rejected at once."""
        run = self.new()
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            status = main([*self.words(run), *words])
        assert not run.exists(), "a run directory was made"
        text = errors.getvalue().strip()
        assert text.count("\n") == 0, text
        return self.refused(Done(status, "", text), *says)

    def plain(self, text: str) -> str:
        """Returns a sentence without this directory's path."""
        return text.replace(f"{self.path}/", "").replace(str(self.path), "")

    def checkpoint(self, run: pathlib.Path, step: int = NEWEST) -> pathlib.Path:
        """Returns the directory of a checkpoint."""
        return run / "arms" / ARM / "checkpoints" / str(step)

    def steps(self, run: pathlib.Path) -> list[int]:
        """Returns the steps of a run's checkpoints."""
        found = self.checkpoint(run).parent.glob("*")
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def rows(self, run: pathlib.Path) -> list[dict[str, Any]]:
        """Returns the logged steps."""
        path = run / "arms" / ARM / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def digest(self, run: pathlib.Path) -> str:
        """Returns the digest of a finished run's parameters."""
        summary = json.loads((run / "summary.json").read_text())
        return summary["arms"][ARM]["params_checksum"]
