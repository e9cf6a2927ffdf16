"""How a command ends: in a status, and in one sentence where something is wrong."""

import sys
from collections.abc import Callable

from examples.finetune.errors import InputError

INTERRUPTED = 130


def exit_status(work: Callable[[], None], interrupted: str) -> int:
    """Does a command's work.

    Args:
      work: all of it, the reading of the command line too.
      interrupted: a sentence for a user who stops it.

    Returns:
      The exit status: 0; 2 for bad input, after a sentence on stderr; 130 if
      interrupted.
    """
    try:
        work()
    except InputError as error:
        print(f"error: {error}".rstrip(".") + ".", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_place(error)}{error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _place(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""
