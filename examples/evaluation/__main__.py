"""Evaluate a language model with EleutherAI's lm-evaluation-harness.

python -m examples.evaluation --output evaluated                       our two tasks
python -m examples.evaluation --output evaluated --tasks arc_easy,piqa  its own tasks
python -m examples.evaluation --help                                   every option
"""

import importlib.util
import sys

from examples.evaluation import options
from examples.finetune.command.errors import InputError
from examples.finetune.command.status import exit_status


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
      arguments: the words after the program's name.

    Returns:
      The exit status of `command.exit_status`.
    """

    def work() -> None:
        given = options.parse(arguments)
        if importlib.util.find_spec("lm_eval") is None:
            raise InputError(
                "examples.evaluation needs lm-evaluation-harness: pip install "
                "'lm-eval>=0.4.13'"
            )
        from examples.evaluation.run import run

        run(given)

    return exit_status(work, "the same command starts again from the beginning.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
