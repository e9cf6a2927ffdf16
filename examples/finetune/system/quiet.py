"""Keeps what other libraries' threads say of a failure off the terminal, for a while.

On a full disk Orbax, TensorStore and tensorboardX fail in threads of their own, at
length and also after the program's one sentence. What they change of the process is
restored at the end of each block.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def loggers(*names: str) -> Iterator[None]:
    """Lets the named loggers log nothing but what is critical inside the block."""
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
    """Lets threads end without a traceback inside the block if one of `errors` did it.

    Whatever else ends a thread is reported as before.
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
