"""Fine-tune a language model with several optimizers and compare what each forgets.

python -m examples.finetune                     the default comparison
python -m examples.finetune --preset smoke      the shortest run that uses everything
python -m examples.finetune --help              every option

The exit status is 0 when the run is complete, 2 for invalid input or a full disk, after
a message that says how to fix it, and 143 or 130 after SIGTERM or Ctrl-C, once the run
has been saved.
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
      The exit status of `status.exit_status`.
    """

    def work() -> None:
        settings = config.parse(arguments)
        checks.check_options(settings)
        # JAX is imported here, so that --help and invalid options need no JAX.
        from examples.finetune.system import hosts

        with hosts.joined(settings):
            from examples.finetune.running.run import run

            run(settings)

    # Messages of Orbax, asyncio and tensorboardX's thread would repeat at length what
    # the program reports in one sentence.
    with quiet.loggers("absl", "asyncio"), quiet.threads(OSError):
        return exit_status(work, "the same command goes on from the last checkpoint.")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status == BAD_INPUT:
        # Ends immediately: on a full disk the libraries' threads fail too, and would
        # print tracebacks after the message while Python waits for them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
