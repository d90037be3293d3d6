"""One command, or one piece of work, in a forked process of its own: what it printed, how it ended, what it took.

torch, transformers and kquant are imported once, by the parent, which computes nothing: so a fork is safe, and a case
takes what its work takes and no more.
"""

from __future__ import annotations

import atexit
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

Work = Callable[[], None]
HANGS = 40.0  # seconds after which a process counts as hanging, however busy the machine is
MOST_ADDRESS_SPACE = 6 << 30  # bytes; keeps a bomb from taking the machine along
MOST_FILE = 1 << 28


@dataclass(frozen=True)
class Outcome:
    """`code`: the exit code, or minus the signal; `seconds` of processor; `peak` bytes; `late`: killed at the limit."""

    pid: int
    code: int
    out: str
    err: str
    seconds: float
    peak: int
    late: bool


def kquant(*args: object) -> Work:
    """The command line with these arguments, as `python -m kquant_cli` runs it."""

    def work() -> None:
        from kquant_cli.__main__ import run as run_program

        sys.argv = ["kquant", *map(str, args)]
        run_program()

    return work


def run(
    work: Work, folder: Path, *, inside: Work = lambda: None, limit: float = HANGS, terminal: bool = False
) -> Outcome:
    """`work` in the current folder `folder`, after `inside` in the same process; killed after `limit` seconds."""
    return Running(work, folder, inside, terminal).wait(limit)


class Running:
    """A process that has begun."""

    def __init__(self, work: Work, folder: Path, inside: Work = lambda: None, terminal: bool = False) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        ends = [os.openpty() if terminal else os.pipe() for _ in range(2)]
        self.pid = os.fork()
        if self.pid == 0:
            for fd, (_, write) in zip((1, 2), ends, strict=True):
                os.dup2(write, fd)
            for read, write in ends:
                os.close(read)
                os.close(write)
            _child(work, folder, inside)
        self._began = time.monotonic()
        self._reading = {read: bytearray() for read, _ in ends}
        self._streams = list(self._reading.values())
        for _, write in ends:
            os.close(write)

    def wait(self, limit: float = HANGS) -> Outcome:
        """Until it has ended; it and its children are killed `limit` seconds after the start."""
        late = False
        while True:
            left = self._began + limit - time.monotonic()
            if left <= 0 and not late:
                late = True
                _kill(self.pid)
            if self._reading:
                self._read(max(left, 0) if not late else 0.05)
            else:
                time.sleep(0.001)
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
        _kill(self.pid)  # what it started and left
        while self._reading and self._read(0):
            pass
        for fd in self._reading:
            os.close(fd)
        out, err = (bytes(stream).decode("utf-8", "backslashreplace") for stream in self._streams)
        seconds = usage.ru_utime + usage.ru_stime
        return Outcome(self.pid, os.waitstatus_to_exitcode(status), out, err, seconds, usage.ru_maxrss * 1024, late)

    def _read(self, seconds: float) -> bool:
        """What is there, waiting for at most `seconds`; whether anything was."""
        ready, _, _ = select.select(list(self._reading), [], [], seconds)
        for fd in ready:
            try:
                data = os.read(fd, 1 << 16)
            except OSError:  # a terminal whose other end is closed
                data = b""
            if data:
                self._reading[fd] += data
            else:
                os.close(fd)
                del self._reading[fd]
        return bool(ready)


def _kill(leader: int) -> None:
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(leader, signal.SIGKILL)


def _child(work: Work, folder: Path, inside: Work) -> NoReturn:
    code = 1
    try:
        os.setsid()
        atexit._clear()  # the parent's
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
        os.chdir(folder)
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESS_SPACE, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        inside()
        code = _end(work)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(work: Work) -> int:
    """Do the work; how Python would end."""
    code: object = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code if isinstance(code, int) else int(code is not None)
