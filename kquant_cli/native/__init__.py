"""Loops for the CPU in C++, compiled at their first use with the machine's compiler, and kept in the user's cache.

Without a compiler nothing is lost but speed: whoever calls `library` has the same in torch. A file in the cache is
named by the hash of source, compiler, options and processor, so that a home folder may serve several machines, and by
the hash of what it holds: a file that is not whole is compiled anew. Of several processes one compiles and the others
wait for it. Where the cache cannot be written to, or nothing in it may be executed, the loops are compiled into a
temporary folder, for this process alone. That loops are compiled is said to the logger "kquant_cli", as information.

    KQUANT_NATIVE=0   do without
    CXX               the compiler, instead of c++, g++ or clang++

Each .cpp is a library of its own, what is not used is not compiled; headers (*.h) are what several share.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

SOURCES = Path(__file__).parent
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-w")
TUNED = ("-march=native", "-mcpu=native", "")  # what the compiler takes on this kind of processor
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 300  # seconds that a process waits for another to compile, before it compiles for itself


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled loops of `name`.cpp, or None where no compiler can make them (or KQUANT_NATIVE is 0)."""
    if os.environ.get("KQUANT_NATIVE") == "0":
        return None
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        return None
    with suppress(subprocess.CalledProcessError):
        with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
            return _load(compiler, SOURCES / f"{name}.cpp", cache_folder())
        with suppress(OSError), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return _load(compiler, SOURCES / f"{name}.cpp", Path(folder))  # what is loaded outlives its file
    return None


def make_ready() -> None:
    """Have all that runs a model from its codes on a CPU compiled, and not while its first token is timed."""
    for name in ("product", "layer"):
        library(name)


def loops(device: str) -> str:
    """What runs on that kind of device, for a manifest: the `compiled` loops, or the same in `torch`."""
    return "compiled" if device == "cpu" and library("anneal") is not None else "torch"


def cache_folder() -> Path:
    """Where compiled loops are kept: $XDG_CACHE_HOME/kashin-quant, else ~/.cache/kashin-quant."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kashin-quant"


def _load(compiler: str, source: Path, folder: Path) -> ctypes.CDLL:
    """The loops of `source` from `folder`, compiled into it where they are not there, or not whole.

    Raises OSError where files cannot be read, written or loaded, CalledProcessError where the compiler fails.
    """
    sources = [file.read_text(encoding="utf-8") for file in (source, *sorted(SOURCES.glob("*.h")))]
    text = "\n".join([*sources, compiler, *OPTIONS, *TUNED, _processor()])

    def build(part: Path) -> None:
        logging.getLogger("kquant_cli").info("compiling %s for this processor, which is done once", source.name)
        for tuned in TUNED:
            command = [compiler, *OPTIONS, *filter(None, [tuned]), "-o", str(part), str(source)]
            run = subprocess.run(command, capture_output=True, check=False)
            if run.returncode == 0:
                break
        run.check_returncode()

    return ctypes.CDLL(str(kept(text, ".so", build, folder)))


def kept(text: str, suffix: str, build: Callable[[Path], None], folder: Path) -> Path:
    """The file in `folder` that `build` makes of `text`; made where it is not there, or not whole.

    It is made in a temporary file, then renamed: another process never sees half of it.
    """
    stem = f"kquant-{_digest(text.encode())}"
    if (found := _whole(folder, stem, suffix)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with suppress(NotImplementedError):  # a file system without locks: several may compile, one file stays
            held.enter_context(FileLock(folder / f"{stem}.lock", timeout=PATIENCE))
        if (found := _whole(folder, stem, suffix)) is not None:
            return found
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            part = Path(temporary) / f"part{suffix}"
            build(part)
            return part.replace(folder / f"{stem}-{_digest(part.read_bytes())}{suffix}")


def _whole(folder: Path, stem: str, suffix: str) -> Path | None:
    """The compiled file of that name, if it is there and as it was written; to load half a file can end the process."""
    for built in folder.glob(f"{stem}-*{suffix}"):
        if built.stem == f"{stem}-{_digest(built.read_bytes())}":
            return built
        built.unlink(missing_ok=True)
    return None


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def _processor() -> str:
    """What tells processors apart that need other machine code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"
