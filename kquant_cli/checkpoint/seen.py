"""What a run has seen of its source, so that what it reads later is the same: hashed once, read for hours.

Of every file: size, times, inode and device, noted before its first byte is read. The time of the last change of its
entry is among them, which no program can set: bytes that are changed in place, with the old time put back, show there.
Of every tensor, once it is hashed, a fast sum of its bytes; of every file that is copied its SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kquant_cli.errors import KQuantError

FileState = tuple[int, int, int, int, int]


def file_state(path: Path) -> FileState:
    """Size, time of the last write, time of the last change (ns both), inode and device. OSError passes through."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


@dataclass
class Seen:
    """States by file, sums by tensor's name, SHA-256 by file; each is filled as it is seen first."""

    states: dict[Path, FileState] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    sha256: dict[Path, str] = field(default_factory=dict)

    def note(self, paths: Iterable[Path]) -> None:
        """Note the states of files that are about to be read. KQuantError where one cannot be."""
        for path in paths:
            self.states[path] = _state(path)

    def require_unchanged(self, paths: Iterable[Path] | None = None) -> None:
        """KQuantError, naming it, where one of the files (else all that were noted) is not as it was."""
        for path in self.states if paths is None else paths:
            if path in self.states and _state(path) != self.states[path]:
                raise changed(path)


def changed(path: Path, what: str = "") -> KQuantError:
    """The sentence on a file that is not what it was; `what`: a part of it."""
    return KQuantError(
        f"{path} has changed since this run began to read it{what}: let nothing write to the checkpoint meanwhile, and "
        f"run the same command again"
    )


def _state(path: Path) -> FileState:
    try:
        return file_state(path)
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error
