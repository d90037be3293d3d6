"""Names of files that come from a file: an index or a manifest must not lead out of its folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath


def stays_inside(name: str) -> bool:
    """Whether the relative path `name` is a file's below its folder, read as a path of Linux and as one of Windows.

    Not so: absolute paths, `..` anywhere, drive letters (`C:x`), the folder itself, and NUL.
    """
    readings = (PurePosixPath(name), PureWindowsPath(name))
    return "\0" not in name and all(path.parts and not path.anchor and ".." not in path.parts for path in readings)
