"""Opens files for reading, plain ones only: a pipe would wait for ever, and a device has no end."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path


def open_plain(path: Path) -> FileIO:
    """The file `path`, open for reading without a buffer.

    Raises OSError: it cannot be opened, or is a pipe, a socket or a device.
    """
    file = FileIO(path, "rb", opener=_without_waiting)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no plain file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # of a pipe that nobody writes to
