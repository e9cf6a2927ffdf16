"""Suppresses messages of other libraries' threads about failures.

On a full disk, threads of Orbax, TensorStore and tensorboardX fail too, and print long
messages, even after the program's message. The changes to the process are undone at the
end of each block.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def loggers(*names: str) -> Iterator[None]:
    """Suppresses all but critical messages of the named loggers within the block."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def threads(*errors: type[BaseException]) -> Iterator[None]:
    """Suppresses tracebacks of threads that end with one of `errors` within the block.

    Other errors in threads are reported as usual.
    """
    report = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, errors):
            report(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = report
