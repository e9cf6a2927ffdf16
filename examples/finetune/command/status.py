"""How a command ends: in a status, and in one sentence where something is wrong.

0    all is done
2    something must be mended first; a sentence on stderr says what
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
      signal: which one.
      status: the exit status, 128 and the signal's number as shells count it.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.status = 128 + number
        super().__init__(self.signal.name)


def exit_status(work: Callable[[], None], stopped: str) -> int:
    """Does a command's work.

    Args:
      work: all of it, the reading of the command line too.
      stopped: what a user who stops it must know, after "Stopped by SIGTERM; ".

    Returns:
      The exit status: 0; 2 for bad input, after a sentence on stderr; 130 or 143 after
      SIGINT or SIGTERM, after another.
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
    """Lets a signal wait for a moment at which nothing is lost.

    Yields:
      Says whether a signal waits. Once it does, the block should end soon.

    Raises:
      Stopped: when the block ends, if a signal waits; or inside it, if SIGINT comes
        again: whoever presses Ctrl-C twice will not wait.
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
    """Gives signals a handler for a while, but for those that are ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Python delivers signals to the main thread alone.
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
    """Writes a line to stderr in one piece: threads that fail as well may write too."""
    sys.stderr.write(f"{words}\n")


def system_reason(error: OSError) -> str:
    """What the system says of an error, after the file's name where it has one."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"
