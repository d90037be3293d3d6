"""The one exception that users see: one sentence that says what is wrong, what was expected and what to do."""

from __future__ import annotations

import reprlib
from typing import Final

LONGEST: Final = 80  # letters that a sentence shows of a value


class KQuantError(Exception):
    """Bad input, named in one sentence; the command line prints it and exits with code 2."""


def shown(value: object) -> str:
    """A value as a sentence shows it: as Python writes it, at most LONGEST letters, however large and deep it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * LONGEST:
        return (
            f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"  # Python refuses to write the longest
        )
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = LONGEST
    return shortened(brief.repr(value))


def shortened(text: str, most: int = LONGEST) -> str:
    """The first `most` letters of a text, with three dots where there were more."""
    return text if len(text) <= most else text[: most - 3] + "..."
