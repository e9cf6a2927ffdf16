"""Find out which optimizer forgets least for what it learns.

python -m examples.study --data DIR --hours 8    does the runs that are missing
python -m examples.study --data DIR --plan       says what is missing, and its hours
python -m examples.study --only RUN              does one run anew
python -m examples.study --report                makes tables and pictures anew
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
      The exit status, as `command.exit_status` has it.
    """

    def work() -> None:
        given = options.parse(arguments)
        # JAX and the rest only now, so that --help and mistakes answer at once.
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

    return exit_status(
        work, "the same command goes on with the run that was in progress."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
