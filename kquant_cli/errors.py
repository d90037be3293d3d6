"""The one exception that users see: one sentence that says what is wrong, what was expected and what to do."""


class KQuantError(Exception):
    """Bad input, named in one sentence; the command line prints it and exits with code 2."""
