"""The end of a command: a status, and one sentence if something is wrong.

0    the run is complete
2    invalid input or a full disk; a message on stderr says how to fix it
130  stopped by SIGINT (Ctrl-C)
143  stopped by SIGTERM
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from examples.finetune.command.errors import InputError

BAD_INPUT = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked the command to stop.

    Attributes:
      signal: the signal.
      status: the exit status, 128 plus the signal's number as in shells.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.status = 128 + number
        super().__init__(self.signal.name)


def exit_status(work: Callable[[], None], stopped: str) -> int:
    """Runs a command and returns its exit status.

    Args:
      work: the whole command, including the parsing of its arguments.
      stopped: what a user who stops it should know, after "Stopped by SIGTERM; ".

    Returns:
      The exit status: 0; 2 for invalid input, after a message on stderr; 130 or 143
      after SIGINT or SIGTERM, after another message.
    """
    try:
        with _handling(_stop):
            work()
    except InputError as error:
        complain(f"error: {error}".rstrip(".") + ".")
        return BAD_INPUT
    except OSError as error:
        complain(f"error: {system_reason(error)}.")
        return BAD_INPUT
    except Stopped as stop:
        complain(f"\nStopped by {stop}; {stopped}")
        return stop.status
    return 0


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Delays signals until a moment at which nothing is lost.

    Yields:
      A function that returns whether a signal is waiting, after which the block should
      end.

    Raises:
      Stopped: when the block ends, if a signal is waiting; or within the block, if
        SIGINT is repeated by a user who does not want to wait.
    """
    waiting: list[int] = []

    def wait(number: int, frame: Any) -> None:
        if waiting and number == signal.SIGINT:
            raise Stopped(number)
        waiting.append(number)

    with _handling(wait):
        yield lambda: bool(waiting)
    if waiting:
        raise Stopped(waiting[0])


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Sets a handler, within a block, for the signals that are not ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Python delivers signals only to the main thread.
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {
        number: old
        for number, old in before.items()
        if old not in (signal.SIG_IGN, None)
    }
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


def complain(words: str) -> None:
    """Writes a line to stderr at once, since failing threads may write too."""
    sys.stderr.write(f"{words}\n")


def system_reason(error: OSError) -> str:
    """Returns the system's message of an error, after the file's name if it has one."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"
