"""Runs one of MaxText's programs, which then knows `opt_type=mofo`.

Put `examples.trainers.maxtext` between `python -m` and the module of MaxText's own
command; everything after it stays as it is:

    python -m examples.trainers.maxtext maxtext.trainers.pre_train.train base.yml ...
"""

import runpy
import sys

USAGE = """usage: python -m examples.trainers.maxtext MODULE [CONFIG.yml] [KEY=VALUE...]
MODULE is one of MaxText's programs, for example maxtext.trainers.pre_train.train"""


def main() -> None:
    """Registers MoFO, then runs the module that is named first as `python -m` would."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(USAGE)
    # Not before the check, because MaxText takes many seconds to import.
    from examples.trainers.maxtext import registration

    registration.register()
    del sys.argv[0]
    # MaxText finds a program's default configuration by its file, `sys.argv[0]`.
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
