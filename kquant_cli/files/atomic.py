"""A file written whole or not at all: under another name beside its own, made durable, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from stat import S_IMODE

SYSTEM = (("/", "dev"), ("/", "proc"))


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[FileIO]:
    """A new file, open for writing, that takes the place of `path` when the block ends well, and is removed otherwise.

    The folder is made if need be; a file that was there before gives its permissions; a link stays and its file is
    replaced. What is no plain file (a terminal, a pipe, /dev/null), or a link of the system's (/dev/stdout), cannot be
    replaced so, and is written to as it is. `durable`: it is on the disk before it takes its place; else, should the
    machine stop, it may be there and hold anything (should the process stop, it is whole or not there).

    OSError passes through: no space left, no permission, a folder of that name.
    """
    if path.parts[:2] in SYSTEM or (path.exists() and not path.is_file()):
        with path.open("wb", buffering=0) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")  # as short a name as that of the file allows
    try:
        with part.open("xb", buffering=0) as file:
            yield file
            if durable:
                os.fsync(file.fileno())
        with suppress(OSError):  # most often there is none
            part.chmod(S_IMODE(path.stat().st_mode))
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of `data`: one raw write may take less than it is given (more than 2 GB, or a signal)."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
