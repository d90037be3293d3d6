"""The one exception that users see: one sentence that says what is wrong, what was expected and what to do."""

from reprlib import Repr
from typing import Final

LONGEST: Final = 200  # letters that a sentence shows of a value

_quoted = Repr()
_quoted.maxstring = _quoted.maxother = LONGEST
_quoted.maxlong = 40


class KQuantError(Exception):
    """Bad input, named in one sentence; the command line prints it and exits with code 2."""


def shortened(value: object) -> str:
    """A value that came from a file, as Python writes it, of a length that fits a sentence."""
    if isinstance(value, int) and value.bit_length() > 300:  # Python refuses to write the longest
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return clipped(_quoted.repr(value), 2 * LONGEST)


def clipped(text: str, most: int = LONGEST) -> str:
    """The first `most` letters of a text, with three dots where there were more."""
    return text if len(text) <= most else text[: most - 3] + "..."
