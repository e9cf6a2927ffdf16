"""The one error that a user of the command sees."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is a whole sentence for them.

    The command prints the message and exits with status 2. It names the argument,
    the value and what is allowed.
    """
