"""Runs one of MaxText's programs with `opt_type=mofo` available.

Put `examples.trainers.maxtext` between `python -m` and the module in MaxText's own
command; the arguments after it stay the same:

    python -m examples.trainers.maxtext maxtext.trainers.pre_train.train run_name=a ...
"""

import runpy
import sys

USAGE = """usage: python -m examples.trainers.maxtext MODULE [CONFIG.yml] [KEY=VALUE...]
MODULE is one of MaxText's programs, such as maxtext.trainers.pre_train.train"""


def main() -> None:
    """Registers MoFO, then runs the named module as `python -m` would."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(USAGE)
    # Imported after the check, because importing MaxText takes many seconds.
    from examples.trainers.maxtext import registration

    registration.register()
    del sys.argv[0]
    # MaxText locates a program's default configuration by `sys.argv[0]`.
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
