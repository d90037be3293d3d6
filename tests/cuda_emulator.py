"""The CUDA kernels on a CPU: compiled with tests/native/emulator in place of the device's instructions."""

import ctypes
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from kquant_cli.native import COMPILERS, nvrtc
from kquant_cli.native.cuda_launch import packed_arguments
from kquant_cli.runtime.products import cuda, trial

SOURCES = Path(__file__).parent / "native" / "emulator"
OPTIONS = ("-O2", "-std=c++17", "-fno-exceptions", "-shared", "-fPIC", "-w")
COMPILER = next(filter(None, map(shutil.which, COMPILERS)), None)
needs_emulator = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64" or COMPILER is None,
    reason="the emulator switches threads in x86-64 assembly, on Linux, and needs a compiler",
)


@cache
def emulator():
    """All kernels, emulated; compiled once for a run of tests."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "emulator.so")
        command = [COMPILER, *OPTIONS, f"-I{nvrtc.SOURCES}", "-o", str(built), str(SOURCES / "kernels.cpp")]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))


class EmulatedLauncher:
    """Launches kernels in the emulator, and notes their names; a small device unless told otherwise."""

    def __init__(self, library, multiprocessors=3, shared=227 * 1024):
        self.library, self.multiprocessors, self.shared = library, multiprocessors, shared
        self.launched = []

    def launch(self, name, defines, grid, block, shared, arguments):
        assert 0 <= shared <= self.shared
        self.launched.append(name)
        _held, pointers = packed_arguments(arguments)
        suffix = "".join(f" {key.removeprefix('THE_')}={value}" for key, value in defines.items())
        assert self.library.emulator_launch((name + suffix).encode(), grid, block, shared, pointers) == 0

    def install(self, monkeypatch):
        """In place of a device's, with all trials to come."""
        monkeypatch.setattr(cuda, "launcher_for", lambda device: self)
        monkeypatch.setattr(trial, "_verdicts", {})
        monkeypatch.delenv("KQUANT_BACKEND", raising=False)
        return self
