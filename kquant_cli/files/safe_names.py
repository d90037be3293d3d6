"""Names of files that come from a file: an index or a manifest must not lead out of its folder, nor a link in it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from kquant_cli.errors import is_control

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

    The files of a snapshot in the cache of the hub are links to the blobs of that model: these are its own.
    """
    try:
        home = folder.resolve()
        places = (home, home.parent.parent / "blobs") if is_snapshot(home) else (home,)
        real = (folder / name).resolve()
    except (OSError, RuntimeError):  # a loop of links
        return True
    return not any(real.is_relative_to(place) for place in places)


def is_snapshot(folder: Path) -> bool:
    """Whether the folder is a snapshot in the cache of the hub, of which it holds what was asked for so far."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
