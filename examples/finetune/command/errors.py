"""The error for invalid input by the user."""


class InputError(ValueError):
    """Invalid input by the user; the message is a whole sentence.

    The command prints the message and exits with status 2. The message states the
    argument, the value and what is allowed.
    """
