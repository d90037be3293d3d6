"""The errors that users see: one sentence that says what is wrong, what was expected and what to do."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterator
from reprlib import Repr
from typing import Final

BIDIRECTIONAL: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
LONGEST: Final = 200  # letters that a sentence shows of a value

# What torch, numpy, the C++ library and the system say where there is no memory, or no room for another thread.
SHORTAGES: Final = (
    *("out of memory", "cannot allocate memory", "can't allocate memory", "unable to allocate", "not enough memory"),
    *("bad_alloc", "can't start new thread", "resource temporarily unavailable"),
    *("could not create a primitive", "could not create a memory object", "failed, switching to"),  # oneDNN's products
)

_quoted = Repr()
_quoted.maxstring = _quoted.maxother = LONGEST
_quoted.maxlong = 40


class KQuantError(Exception):
    """Bad input, named in one sentence; the command line prints it and exits with code 2.

    Names in the sentence may be somebody else's: it is `printable`, whoever prints it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def is_control(character: str) -> bool:
    """Whether a character steers a terminal or the direction of text in place of being shown (category Cc, and Cf's
    bidirectional marks)."""
    return unicodedata.category(character) == "Cc" or character in BIDIRECTIONAL


def printable(text: str) -> str:
    """`text` with another character in place of each that steers a terminal or the direction of text, or is a half.

    So are ESC and all of C0 and C1 but the end of a line, DEL, and the marks, overrides and isolates of bidirectional
    text; and lone surrogates, which stand for bytes of names that are no UTF-8.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c == "\n" or not (is_control(c) or unicodedata.category(c) == "Cs") else REPLACED for c in text)


def shortened(value: object) -> str:
    """A value that came from a file, as Python writes it, of a length that fits a sentence."""
    if isinstance(value, int) and value.bit_length() > 300:  # Python refuses to write the longest
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return clipped(_quoted.repr(value), 2 * LONGEST)


def clipped(text: str, most: int = LONGEST) -> str:
    """The first `most` letters of a text, with three dots where there were more."""
    return text if len(text) <= most else text[: most - 3] + "..."


class MemoryShortage(KQuantError):  # noqa: N818 (what the user reads is that, not an error)
    """There is not enough memory for what was asked for; the same command may well work where there is more."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error, or one that it was raised for, is a shortage of memory.

    To be asked wherever an error leads to something else being done instead: a shortage must not, for which of the two
    happens would hang on what else the machine is doing.
    """
    return any(_is_short(one) for one in _chain(error))


def _is_short(error: BaseException) -> bool:
    if isinstance(error, MemoryError | MemoryShortage) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError | OSError | ImportError | Warning) and any(
        words in said for words in SHORTAGES
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
