"""A file that one process at a time holds. The system lets go of it when that process ends, however it ends.

What is in the file says who holds it. The next one writes over that, so the file need not go when its holder does; and
where it does go, one who had opened it before does not take the file that is no longer there for the lock.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISREG

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
LENGTH = 512  # bytes of what is in the file: one write, so that it is never half there
HELD_FOR_WINDOWS = 1 << 30  # the byte that is locked there, where none is read: a locked one cannot be
PLAIN = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))  # no links, no wait on a pipe
BEGINNING = b'{"kquant": "'
PATIENCE = 0.5  # seconds that one who has the lock may take to say so


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `kquant`: a random number in hexadecimal, another one each time."""

    kquant: str
    host: str
    pid: int
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """This one, from now on."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(secrets.token_hex(16), platform.node()[:40], os.getpid(), since)

    def is_gone(self) -> bool:
        """Whether it was a process of this machine that has ended: who has the lock now has yet to say so."""
        if self.host != platform.node()[:40] or sys.platform == "win32":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


class LockHeldError(Exception):
    """Another process has the lock; `holder`: which, None where it has not said yet."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(holder)
        self.holder = holder


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds. `exclusive`: False where the file system has no locks."""

    path: Path
    file: int
    holder: Holder
    exclusive: bool

    def release(self, *, remove: bool) -> None:
        """Let go; `remove`: of the file too, while it is still held, where the system allows that."""
        try:
            if remove and sys.platform != "win32":
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self.file)
        if remove and sys.platform == "win32":
            self.path.unlink(missing_ok=True)


def lock(path: Path) -> Lock:
    """Take the lock `path`, whose folder is there; who holds it is written into it.

    Raises
    ------
    LockHeldError
        Another process, or another lock of this one, has it.
    OSError
        The file cannot be made or written, is a link or no plain file, or its folder is gone (FileNotFoundError).
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | PLAIN, 0o666)
        try:
            if not S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "is no plain file", str(path))
            exclusive = _take(file)
            if exclusive is None:
                found = _read(file)
                said = found is not None and not found.is_gone()
                if said or time.monotonic() > give_up:
                    raise LockHeldError(found if said else None)
                time.sleep(PATIENCE / 20)
            elif _is_still(path, file):
                holder = Holder.this_process()
                os.lseek(file, 0, os.SEEK_SET)
                text = json.dumps(asdict(holder)).encode()[: LENGTH - 1].ljust(LENGTH - 1) + b"\n"
                if os.write(file, text) < LENGTH:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                held, file = Lock(path, file, holder, exclusive), -1
                return held
        finally:
            if file >= 0:
                os.close(file)


def begins_as_lock(path: Path) -> bool:
    """Whether a file holds no more than the beginning of what `lock` writes: who made it was stopped there."""
    try:
        with path.open("rb") as file:
            text = file.read(LENGTH + 1)
    except OSError:
        return False
    return len(text) < LENGTH and text.startswith(BEGINNING[: len(text)])


def last_holder(path: Path) -> Holder | None:
    """Who holds or held the lock `path` last; None where that is no file that `lock` wrote."""
    try:
        file = os.open(path, os.O_RDONLY | PLAIN)
    except OSError:
        return None
    try:
        return _read(file) if S_ISREG(os.fstat(file).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(file)


def _take(file: int) -> bool | None:
    """Lock the open file: True; None where another has it, False where the file system has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(file, HELD_FOR_WINDOWS, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return None
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _is_still(path: Path, file: int) -> bool:
    """Whether the open file is the one of that name: another may have removed it, or made it anew."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _read(file: int) -> Holder | None:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        values = json.loads(os.read(file, LENGTH))
        holder = Holder(**{name: values[name] for name in ("kquant", "host", "pid", "since")})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return holder if isinstance(holder.kquant, str) and len(holder.kquant) == 32 else None
