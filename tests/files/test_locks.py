"""One process at a time holds a lock; the system takes it back; who holds it is said."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kquant_cli.files import locks
from kquant_cli.files.locks import LockHeldError, last_holder, lock

HOLD = """
import sys, time; from pathlib import Path; from kquant_cli.files.locks import lock
held = lock(Path(sys.argv[1])); print(held.holder.kquant, flush=True); time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_second_one_is_told_who_holds_it(path):
    held = lock(path)
    with pytest.raises(LockHeldError) as refused:
        lock(path)
    assert refused.value.holder == held.holder
    assert (held.holder.pid, held.exclusive) == (os.getpid(), True)
    held.release(remove=False)
    again = lock(path)
    assert again.holder.kquant != held.holder.kquant
    assert last_holder(path) == again.holder
    again.release(remove=True)
    assert not path.exists()


def test_the_lock_of_a_process_that_is_killed_is_free(path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        name = other.stdout.readline().strip()
        with pytest.raises(LockHeldError) as refused:
            lock(path)
        assert (refused.value.holder.kquant, refused.value.holder.pid) == (name, other.pid)
        other.send_signal(signal.SIGKILL)
    lock(path).release(remove=True)


def test_a_file_that_was_removed_meanwhile_is_no_lock(path, monkeypatch):
    """One opens the file, the holder removes it and lets go, a third makes it anew: the first must not get in too."""
    first, take, third = lock(path), locks._take, []

    def removed_before(file: int) -> bool | None:
        if not third:
            first.release(remove=True)
            third.append(None)
            third[0] = lock(path)
        return take(file)

    monkeypatch.setattr(locks, "_take", removed_before)
    with pytest.raises(LockHeldError) as refused:
        lock(path)
    assert refused.value.holder == third[0].holder


@pytest.mark.parametrize("code", locks.NO_LOCKS)
@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_a_file_system_without_locks(path, monkeypatch, code):
    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", none)
    held = lock(path)
    assert held.exclusive is False
    assert last_holder(path) == held.holder


def test_links_and_what_is_no_file_are_refused(path, tmp_path):
    (tmp_path / "other").write_text("x")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError) as refused:
        lock(path)
    assert refused.value.errno in (errno.ELOOP, errno.EMLINK)
    assert (tmp_path / "other").read_text() == "x"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="no plain file"):
        lock(path)
    assert last_holder(path) is None


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"[" * 400, b'{"kquant": 3, "host": "", "pid": 1, "since": ""}'])
def test_what_no_lock_wrote_names_nobody(path, content):
    path.write_bytes(content)
    assert last_holder(path) is None


def test_the_words_of_one_that_has_ended_are_not_those_of_the_holder(path, monkeypatch):
    """Who has just taken the lock has not yet written over what the last one left there."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        other.send_signal(signal.SIGKILL)
    left = path.read_bytes()
    held = lock(path)
    path.write_bytes(left)
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    with pytest.raises(LockHeldError) as refused:
        lock(path)
    assert refused.value.holder is None
    held.release(remove=True)


def test_a_lock_that_is_half_written_is_an_error_and_ours(path, monkeypatch):
    monkeypatch.setattr(locks.os, "write", lambda file, text, write=os.write: write(file, text[:20]))
    with pytest.raises(OSError, match="No space left"):
        lock(path)
    assert len(path.read_bytes()) == 20
    assert locks.begins_as_lock(path)
    path.write_bytes(b"somebody's")
    assert not locks.begins_as_lock(path)
