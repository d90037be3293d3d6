"""Every call of a process that touches files below a folder, with something done before it: a kill, a fault, a change.

Python's audit events tell of open, rename, remove and their like before they happen; files that Python opens are
replaced by files that tell of each read and write; fsync and sendfile are wrapped.
"""

from __future__ import annotations

import builtins
import io
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
LOCKING = {"fcntl.flock", "fcntl.lockf"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Called with the number of the call, its name and its path; raises an OSError in place of the call, or returns
# "short", for a read or write of half of what was asked.
Strike = Callable[[int, str, str], str | None]


class Log:
    """What a process and its parent share: how many calls there were, and the last one in words."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)

    def write(self, number: int, words: str) -> None:
        """Note the call of that number."""
        line = f"{number}\n{words}\n".encode("utf-8", "backslashreplace")[:4000]
        self._memory[: len(line)] = line

    @property
    def count(self) -> int:
        """How many calls there were."""
        return int(self._line(0) or -1) + 1

    @property
    def last(self) -> str:
        """The last call in words."""
        return self._line(1)

    def _line(self, number: int) -> str:
        return bytes(self._memory).rstrip(b"\0").decode().split("\n")[number] if self._memory[0] else ""


class Calls:
    """Numbers the calls of this process below `folder`; `reads`: those that read, too; `halves`: half a write is one.

    To be installed in a process that ends soon: an audit hook stays.
    """

    def __init__(self, folder: Path, log: Log, strike: Strike, *, reads: bool = False, halves: bool = False) -> None:
        self.folder, self.log, self.strike = os.path.realpath(folder), log, strike
        self.reads, self.halves = reads, halves
        self.number, self.inside = 0, False

    def install(self) -> None:
        """From now on."""
        original = io.open

        def tapped(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or not self.is_ours(os.fspath(file)):
                return original(file, mode, *args, **kwargs)
            return _open(self, file, mode, *args, **kwargs)

        io.open = builtins.open = tapped  # type: ignore[assignment]
        os.fsync = self._wrapped(os.fsync, "fsync", 0)
        os.sendfile = self._wrapped(os.sendfile, "write", 0)
        os.write = self._wrapped(os.write, "write", 0)
        sys.addaudithook(self._audit)

    def is_ours(self, path: str | bytes, folder: int = -1) -> bool:
        """Whether a path (below the open `folder`, if there is one) is below the folder that is watched."""
        return os.path.normpath(_whole(path, folder)).startswith(self.folder + os.sep)

    def call(self, name: str, path: Any) -> str | None:
        """Before a call: number it and strike."""
        if self.inside:  # a call of the strike's own
            return None
        self.inside = True
        try:
            where = os.path.relpath(os.fsdecode(path), self.folder)
            number, self.number = self.number, self.number + 1
            self.log.write(number, f"{name} {where}")
            return self.strike(number, name, where)
        finally:
            self.inside = False

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside:
            return
        if event == "open":
            path, _, flags = args
            writes = bool(flags & WRITES)
            if not isinstance(path, int) and (writes or self.reads) and self.is_ours(path):
                self.call("open to write" if writes else "open to read", path)
        elif event in CHANGING and not isinstance(args[0], int):
            folder = args[-1] if event in {"os.remove", "os.rmdir", "os.mkdir", "os.rename"} else -1
            if self.is_ours(args[0], folder):
                self.call(event, _whole(args[0], folder))
        elif event in LOCKING:
            self._by_number(event, args[0])

    def _wrapped(self, function: Callable[..., Any], name: str, position: int) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._by_number(name, args[position])
            return function(*args, **kwargs)

        return wrapper

    def _by_number(self, name: str, fd: Any) -> None:
        """A call on an open file."""
        path = _whole("", fd if isinstance(fd, int) else fd.fileno())
        if self.is_ours(path):
            self.call(name, path)


def _whole(path: str | bytes, folder: int = -1) -> str:
    """A path below the open folder of that number, or below the current one; "" is the folder (or open file) itself."""
    base = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
    return str(base / os.fsdecode(path))


def _open(calls: Calls, file: Any, mode: str, buffering: int = -1, *text: Any, **named: Any) -> Any:
    """As `io.open`, of files that tell of their reads and writes."""

    class Tapped(io.FileIO):
        def write(self, data: Any) -> int:
            half = len(data := memoryview(data).cast("B")) // 2
            if calls.call("write", self.name) == "short" and half:
                return super().write(data[:half])
            if not (calls.halves and half):
                return super().write(data)
            done = super().write(data[:half])
            calls.call("the second half of a write", self.name)
            return done + super().write(data[half:])

        def readinto(self, view: Any) -> int:
            view = memoryview(view).cast("B")
            if calls.reads and calls.call("read", self.name) == "short":
                view = view[: max(len(view) // 2, 1)]
            return super().readinto(view)

        def read(self, size: int = -1) -> bytes:
            if calls.reads:
                calls.call("read", self.name)
            return super().read(size)

        def readall(self) -> bytes:
            if calls.reads:
                calls.call("read", self.name)
            return super().readall()

    raw = Tapped(file, mode.replace("t", "").replace("b", "").replace("U", ""))
    if buffering == 0:
        return raw
    kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
    buffered = kind(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **named)
