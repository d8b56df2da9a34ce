"""The one exception for bad input: what was given, what was expected, what to do. The command line exits with 2 on it."""


class InputError(ValueError):
    """A caller's mistake, told in one sentence."""
