"""Files that somebody else laid out: opened only where they are plain files, and followed only where links stay inside.

A pipe would be waited for without end, a device has no end, and a link can lead to any file that the user may read.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from stat import S_ISREG

from kquant_cli.errors import KQuantError

FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


def open_plain(path: Path) -> FileIO:
    """The file, open for reading, after links. OSError passes through; it never waits.

    Raises KQuantError when it is a pipe, a device, a socket or a folder.
    """
    if S_ISREG(path.stat().st_mode):
        file = os.fdopen(os.open(path, FLAGS), "rb", buffering=0)
        if S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise KQuantError(f"{path} is no plain file (a folder, a pipe or a device): put a plain file there, or remove it")


def is_there(path: Path) -> bool:
    """Whether a plain file is there, after links. KQuantError where something else is, which no file can replace."""
    if path.exists() and not path.is_file():
        raise KQuantError(f"{path} is in the way, and is no plain file: move it, or choose another --output")
    return path.exists()


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether `path`, below `folder`, is by a link a file elsewhere.

    The files of a snapshot of the hub's cache (models--NAME/snapshots/COMMIT) are links to that model's blobs: these
    are not elsewhere.
    """
    root, real = folder.resolve(), path.resolve()
    inside = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        inside.append((root.parent.parent / "blobs").resolve())
    return not any(real.is_relative_to(place) for place in inside)
