"""Files that somebody else laid out: opened for reading only where they are plain ones.

A pipe would be waited for without end, and a device has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from kquant_cli.errors import KQuantError

FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY"))  # no wait for who writes to a pipe


def open_plain(path: Path) -> FileIO:
    """The file `path`, after links, open for reading without a buffer.

    Raises OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    file = FileIO(path, "rb", opener=lambda name, flags: os.open(name, flags | FLAGS))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return file


def is_there(path: Path) -> bool:
    """Whether a plain file is there, after links. KQuantError where something else is, which no file can replace."""
    if path.exists() and not path.is_file():
        raise KQuantError(f"{path} is in the way, and is no plain file: move it, or choose another --output")
    return path.exists()
