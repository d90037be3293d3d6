"""Compiling at first use: the cache, its faults, and doing without. Each case in a process of its own."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys

import pytest

from kquant_cli import native

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, native.COMPILERS)), reason="needs a compiler, on Linux"
)

ENCODE = """
import torch
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.native import library

torch.set_num_threads(1)
weight = torch.randn(20, 192, generator=torch.Generator().manual_seed(0))
error = encode(weight, EncoderConfig(bits=3)).record.relative_error ** 2
print("compiled" if library("anneal") else "torch", error)
"""
LOAD = "from kquant_cli.native import library; print('compiled' if library('anneal') else 'torch')"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """A compiler that notes its calls in $CALLS, and copies a file compiled once: compiling takes seconds."""
    folder = tmp_path_factory.mktemp("compiler")
    real = next(filter(None, map(shutil.which, native.COMPILERS)))
    built = folder / "built.so"
    subprocess.run([real, *native.OPTIONS, "-o", str(built), str(native.SOURCES / "anneal.cpp")], check=True)
    return script(folder / "fake", f'while [ "$1" != -o ]; do shift; done\ncp {built} "$2"')


def script(path, text):
    """A program that notes that it was called."""
    path.write_text(f'#!/bin/sh\necho called >> "$CALLS"\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def start(tmp_path, fake):
    """Start Python on `code`, with a cache of its own and the fake compiler."""

    def run(code=LOAD, **changes):
        changed = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CALLS": str(tmp_path / "calls"), "CXX": str(fake)}
        environment = {k: v for k, v in os.environ.items() if k not in ("KQUANT_NATIVE", "TMPDIR")} | changed | changes
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)

    return run


@pytest.fixture
def outcome(start):
    def run(code=LOAD, **changes):
        process = start(code, **changes)
        printed, _ = process.communicate()
        assert process.returncode == 0
        return printed.split()

    return run


def calls(tmp_path):
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kept(tmp_path):
    """The files of the cache, but for locks."""
    return sorted(path for path in (tmp_path / "cache" / "kashin-quant").iterdir() if path.suffix != ".lock")


def test_the_machines_compiler_compiles_into_the_cache_once(tmp_path, outcome):
    """The real one: its loops encode, and a second process takes the file."""
    how, error = outcome(ENCODE, CXX="")
    assert how == "compiled"
    assert 0.015 < float(error) < 0.0225
    (built,) = kept(tmp_path)  # and no remains
    assert built.suffix == ".so"
    written = built.stat().st_mtime_ns
    assert outcome(CXX="") == ["compiled"]
    assert [(path, path.stat().st_mtime_ns) for path in kept(tmp_path)] == [(built, written)]


def test_a_second_process_calls_no_compiler(tmp_path, outcome):
    assert outcome() == ["compiled"]
    assert calls(tmp_path) == 1
    assert outcome() == ["compiled"]
    assert calls(tmp_path) == 1


def test_without_native_code_on_demand(tmp_path, outcome):
    assert outcome(KQUANT_NATIVE="0") == ["torch"]
    assert calls(tmp_path) == 0
    assert outcome(KQUANT_NATIVE="1") == ["compiled"]


def test_a_compiler_that_fails(tmp_path, outcome):
    """Each choice of options is tried once; then the encoder works in torch, and nothing is left behind."""
    broken = script(tmp_path / "broken", "exit 1")
    how, error = outcome(ENCODE, CXX=str(broken))
    assert how == "torch"
    assert 0.015 < float(error) < 0.0225
    assert calls(tmp_path) == len(native.TUNED)
    assert kept(tmp_path) == []


def test_a_compiler_that_knows_no_march(tmp_path, outcome, fake):
    choosy = script(tmp_path / "choosy", f'case "$*" in *=native*) exit 1;; esac\nexec {fake} "$@"')
    assert outcome(CXX=str(choosy)) == ["compiled"]
    assert calls(tmp_path) == len(native.TUNED) + 1  # the last one calls `fake`


def test_a_compiler_that_writes_nonsense(tmp_path, outcome):
    broken = script(tmp_path / "broken", 'while [ "$1" != -o ]; do shift; done\necho nonsense > "$2"')
    assert outcome(CXX=str(broken)) == ["torch"]


def test_no_compiler(tmp_path, outcome):
    (tmp_path / "empty").mkdir()
    assert outcome(PATH=str(tmp_path / "empty"), CXX="") == ["torch"]
    assert outcome(PATH=str(tmp_path / "empty"), CXX="none-such") == ["torch"]


def test_another_compiler_gets_another_file(tmp_path, outcome, fake):
    assert outcome() == ["compiled"]
    other = shutil.copy(fake, tmp_path / "other")
    assert outcome(CXX=str(other)) == ["compiled"]
    assert len(kept(tmp_path)) == 2
    assert calls(tmp_path) == 2


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_a_file_that_is_not_whole_is_compiled_anew(tmp_path, outcome, size):
    """To load half a file can end the process with a bus error: it is not tried."""
    assert outcome() == ["compiled"]
    (built,) = kept(tmp_path)
    whole = built.read_bytes()
    built.write_bytes(whole[:size])
    assert outcome() == ["compiled"]
    assert calls(tmp_path) == 2
    assert [path.read_bytes() for path in kept(tmp_path)] == [whole]
    assert outcome() == ["compiled"]
    assert calls(tmp_path) == 2


def test_two_processes_at_once(tmp_path, start, fake):
    """One compiles while the others wait, and all get a whole library."""
    slow = script(tmp_path / "slow", f'sleep 0.3\nexec {fake} "$@"')
    processes = [start(CXX=str(slow)) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["compiled"] * 3
    assert all(process.returncode == 0 for process in processes)
    assert len(kept(tmp_path)) == 1
    assert calls(tmp_path) == 2  # `slow`, which calls `fake`


def test_two_processes_where_files_cannot_be_locked(tmp_path, start, fake):
    """Both compile then, while neither is done; one file is left."""
    slow = script(tmp_path / "slow", f'sleep 0.5\nexec {fake} "$@"')
    unlocked = "import filelock, kquant_cli.native\ndef refuse(*_, **__): raise NotImplementedError\n"
    code = f"{unlocked}kquant_cli.native.FileLock = refuse\n{LOAD}"
    processes = [start(code, CXX=str(slow)) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["compiled"] * 2
    assert len(kept(tmp_path)) == 1


def test_who_waits_too_long_compiles_for_itself(tmp_path, outcome):
    locked = f"""
import kquant_cli.native as native
from filelock import FileLock
real = native.FileLock
native.PATIENCE = 0.1
def taken(path, timeout):
    if path.parent == native.cache_folder():
        other = real(path, thread_local=False); other.acquire(); held.append(other)
    return real(path, timeout=timeout)
held = []
native.FileLock = taken
{LOAD}
"""
    assert outcome(locked) == ["compiled"]
    assert kept(tmp_path) == []


def test_compiling_is_logged_and_loading_is_not(tmp_path, outcome):
    logged = f"import logging, sys; logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s'); {LOAD}"
    assert " ".join(outcome(logged)) == "compiling anneal.cpp for this processor, which is done once compiled"
    assert outcome(logged) == ["compiled"]


def test_a_cache_that_cannot_be_written_to(tmp_path, outcome):
    """A file in the folder's place (root may write everywhere): compiled for this process alone, in a temporary one."""
    (tmp_path / "cache").write_text("in the way")
    (tmp_path / "temporary").mkdir()
    how, error = outcome(ENCODE, TMPDIR=str(tmp_path / "temporary"))
    assert how == "compiled"
    assert 0.015 < float(error) < 0.0225  # what is loaded outlives its file
    assert list((tmp_path / "temporary").iterdir()) == []
    assert calls(tmp_path) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.cache_folder() == tmp_path / "kashin-quant"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert native.cache_folder() == tmp_path / "home" / ".cache" / "kashin-quant"


def test_a_user_without_a_home(monkeypatch, fake, tmp_path):
    """`Path.home` raises RuntimeError then."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KQUANT_NATIVE", raising=False)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(native, "cache_folder", homeless)
    assert isinstance(native.library.__wrapped__("anneal"), ctypes.CDLL)
    assert calls(tmp_path) == 1


def test_the_source_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KQUANT_NATIVE", raising=False)
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    assert native.library.__wrapped__("anneal") is None


def test_the_library_is_loaded_once():
    assert native.library("anneal") is native.library("anneal")
