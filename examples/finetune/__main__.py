"""Fine-tune a language model with several optimizers and see what each forgot.

python -m examples.finetune                     the default comparison
python -m examples.finetune --preset smoke      the shortest run that shows all
python -m examples.finetune --help              every option

It ends with status 0 when all is done; with 2 after a sentence that says what must be
mended first; with 143 or 130 when SIGTERM or Ctrl-C stopped it, after it has saved.
"""

import os
import sys

from examples.finetune.command import config
from examples.finetune.command.status import BAD_INPUT, exit_status
from examples.finetune.running import checks
from examples.finetune.system import quiet


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
      arguments: the words after the program's name.

    Returns:
      The exit status, as `status.exit_status` describes it.
    """

    def work() -> None:
        settings = config.parse(arguments)
        checks.check_options(settings)
        # JAX is imported only here, so that --help and mistakes are answered at once.
        from examples.finetune.system import hosts

        with hosts.joined(settings):
            from examples.finetune.running.run import run

            run(settings)

    # Orbax's and asyncio's messages, and tensorboardX's thread, repeat at length what
    # the program reports in a sentence.
    with quiet.loggers("absl", "asyncio"), quiet.threads(OSError):
        return exit_status(work, "the same command goes on from the last checkpoint.")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status == BAD_INPUT:
        # At once: on a full disk the libraries' threads fail too, and would bury the
        # sentence under tracebacks of their own while Python waits for them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
