"""Compare how much optimizers forget for what they learn.

python -m examples.study --data DIR --hours 8    runs what is missing
python -m examples.study --data DIR --plan       prints what is missing, and its hours
python -m examples.study --only RUN              repeats one run
python -m examples.study --report                makes the tables and pictures
python -m examples.study --help                  every option
"""

import sys

from examples.finetune.command.status import exit_status
from examples.study import options


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
      arguments: the words after the program's name.

    Returns:
      The exit status of `command.exit_status`.
    """

    def work() -> None:
        given = options.parse(arguments)
        # Imported here, so that --help and errors in options need no JAX.
        from examples.study import commands, report, screening, study

        if given.report:
            report.write_all(given.output)
        elif given.plan:
            commands.tell_plan(given)
        elif given.screen:
            study.say(str(screening.run(study.open_study(given), given.screen)))
        elif given.only:
            commands.repeat(given)
        else:
            report.write(commands.run(given).parent)

    return exit_status(work, "the same command repeats the run that was in progress.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
