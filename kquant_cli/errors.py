"""The one exception that users see: one sentence that says what is wrong, what was expected and what to do."""

from reprlib import Repr

_quoted = Repr()
_quoted.maxstring = _quoted.maxother = 200
_quoted.maxlong = 40


class KQuantError(Exception):
    """Bad input, named in one sentence; the command line prints it and exits with code 2."""


def shortened(value: object) -> str:
    """A value that came from a file, as Python writes it, of a length that fits a sentence."""
    return _quoted.repr(value)
