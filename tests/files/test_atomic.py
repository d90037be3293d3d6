"""A file is written whole or not at all, whatever fails on the way."""

import errno
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from kquant_cli.files.atomic import whole_file, write_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that was there before."""
    (tmp_path / "x.json").write_bytes(b"old")
    return tmp_path / "x.json"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_new_file_takes_the_place_of_the_old_one_at_the_end(path: Path) -> None:
    with whole_file(path) as file:
        write_all(file, b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["x.json"]


def test_folders_are_made(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a" / "b" / "c") as file:
        write_all(file, b"new")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fault", ["write", "fsync", "rename", "interrupt"])
def test_a_fault_leaves_what_was_there_and_nothing_else(
    path: Path, fault: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not there:
        path.unlink()
    if fault == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    if fault == "rename":
        monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(KeyboardInterrupt if fault == "interrupt" else OSError), whole_file(path) as file:
        write_all(file, b"ne")
        if fault == "write":
            no_space()
        if fault == "interrupt":
            raise KeyboardInterrupt
    assert names(path.parent) == (["x.json"] if there else [])
    assert not there or path.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform != "linux", reason="counts and limits as Linux does")
def test_a_file_larger_than_the_system_allows(path: Path) -> None:
    """A real write that the system cuts short and then refuses, in a process of its own."""
    child = os.fork()
    if not child:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        code = 1
        try:
            with whole_file(path) as file:
                write_all(file, bytes(5000))
        except OSError as error:
            code = 0 if error.errno == errno.EFBIG else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert names(path.parent) == ["x.json"]
    assert path.read_bytes() == b"old"


def test_the_permissions_of_the_old_file_stay(path: Path) -> None:
    path.chmod(0o600)
    with whole_file(path) as file:
        write_all(file, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_can_be(tmp_path: Path) -> None:
    name = "é" * 127
    with whole_file(tmp_path / name) as file:
        write_all(file, b"new")
    assert names(tmp_path) == [name]


def test_a_folder_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "x"):
        pass
    assert names(tmp_path) == ["x"]


def test_two_writers_do_not_mix(path: Path) -> None:
    with whole_file(path) as first, whole_file(path) as second:
        for part in (b"1", b"1"):
            write_all(first, part)
            write_all(second, b"2")
    assert path.read_bytes() == b"11"
    assert names(path.parent) == ["x.json"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_link_stays_and_its_file_is_replaced_or_not(path: Path, fails: bool) -> None:
    (path.parent / "folder").mkdir()
    link = path.parent / "folder" / "link"
    link.symlink_to("../x.json")
    with suppress(OSError), whole_file(link) as file:
        write_all(file, b"new")
        if fails:
            no_space()
    assert path.read_bytes() == (b"old" if fails else b"new")
    assert link.is_symlink()
    assert names(path.parent) == ["folder", "x.json"]
    assert names(link.parent) == ["link"]


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="needs /dev/stdout")
def test_what_the_system_leads_to_is_not_replaced(path: Path) -> None:
    """Output that a shell sends to a file and `--json /dev/stdout` share that file."""
    code = "from kquant_cli.files.atomic import *; print('a', flush=True)\n"
    code += "with whole_file(Path('/dev/stdout')) as file: write_all(file, b'b\\n')\nprint('c', flush=True)"
    with path.open("ab") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert path.read_bytes().split()[-1] == b"c"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with whole_file(tmp_path / "pipe") as file:
        write_all(file, b"new")
    reader.join(10)
    assert read == [b"new"]
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_write_that_takes_less_than_it_is_given_goes_on() -> None:
    class Short:
        written = b""

        def write(self, view: memoryview) -> int:
            self.written += bytes(view[:3])
            return min(3, len(view))

    for data in (b"", b"123456", bytes(range(200))):
        file = Short()
        write_all(file, data)  # type: ignore[arg-type]
        assert file.written == data
