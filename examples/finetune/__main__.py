"""Fine-tune a language model with several optimizers and see what each forgot.

python -m examples.finetune                     the default comparison
python -m examples.finetune --preset smoke      the shortest run that shows all
python -m examples.finetune --help              every option
"""

import sys

from examples.finetune import checks, config
from examples.finetune.errors import InputError

INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
      arguments: the words after the program's name.

    Returns:
      The exit status: 0; 2 for bad input, after a sentence on stderr; 130 if
      interrupted.
    """
    try:
        settings = config.parse(arguments)
        checks.check_options(settings)
        # JAX and the rest only now, so that --help and mistakes answer at once.
        from examples.finetune.run import run

        run(settings)
    except InputError as error:
        print(f"error: {error}".rstrip(".") + ".", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_place(error)}{error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nInterrupted; the same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _place(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
