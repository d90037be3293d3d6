"""Names of files that come from a file: an index or a manifest must not lead out of its folder, nor a link in it."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

LONGEST_PART = 255  # bytes; what Linux, macOS and Windows take
LONGEST = 1024  # bytes of a whole name


def stays_inside(name: object) -> bool:
    """Whether `name` is that of a file below its folder, read as a path of Linux and as one of Windows.

    Not so: what is no text, absolute paths, `..` anywhere (also with dots or blanks behind it, which Windows drops),
    drive letters (`C:x`), backslashes, the folder itself, names of devices (`NUL`), control characters, what no file
    system can hold (lone surrogates, more than `LONGEST` bytes).
    """
    if not isinstance(name, str) or "\\" in name or any(is_control(character) for character in name):
        return False
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    if len(encoded) > LONGEST or any(len(part) > LONGEST_PART for part in encoded.split(b"/")):
        return False
    windows = PureWindowsPath(name)
    return (
        all(path.parts and not path.anchor for path in (PurePosixPath(name), windows))
        and all(part.strip(". ") for part in windows.parts)
        and not any(PureWindowsPath(part).is_reserved() for part in windows.parts)
    )


def leads_outside(folder: Path, name: str) -> bool:
    """Whether the file `name` of `folder` is, once links are followed, none of the folder's.

    A snapshot in the cache of the hub is made of links to the blobs beside it: the folder of the whole model
    (`models--OWNER--NAME`) counts as its own.
    """
    try:
        home = folder.resolve()
        if is_snapshot(home):
            home = home.parent.parent
        return not (folder / name).resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a loop of links
        return True


def is_snapshot(folder: Path) -> bool:
    """Whether the folder is a snapshot in the cache of the hub, of which it holds what was asked for so far."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def is_control(character: str) -> bool:
    """Whether a character steers a terminal or the direction of text in place of being shown (categories Cc and Cf's
    bidirectional marks)."""
    return unicodedata.category(character) == "Cc" or character in BIDIRECTIONAL


BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
