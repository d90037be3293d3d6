"""Loops for the CPU in C++, compiled at their first use with the machine's compiler, and kept in the user's cache.

Without a compiler nothing is lost but speed: whoever calls `library` has the same in torch. The file in the cache is
named by the hash of source, compiler, options and processor, so that a home folder may serve several machines.

    KQUANT_NATIVE=0   do without
    CXX               the compiler, instead of c++, g++ or clang++
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

SOURCE = Path(__file__).with_name("anneal.cpp")
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-w")
TUNED = ("-march=native", "-mcpu=native", "")  # what the compiler takes on this kind of processor
COMPILERS = ("c++", "g++", "clang++")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where there is no compiler (or KQUANT_NATIVE is 0)."""
    if os.environ.get("KQUANT_NATIVE") == "0":
        return None
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        return None
    text = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, *OPTIONS, *TUNED, _processor()])
    built = cache_folder() / f"kquant-{sha256(text.encode()).hexdigest()[:16]}.so"
    try:
        if not built.exists():
            _build(compiler, built)
        return ctypes.CDLL(str(built))
    except OSError:
        return None


def cache_folder() -> Path:
    """Where compiled loops are kept: $XDG_CACHE_HOME/kashin-quant, else ~/.cache/kashin-quant."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kashin-quant"


def _build(compiler: str, built: Path) -> None:
    """Compile into a temporary file beside `built`, then rename it: another process never sees half a file."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        part = Path(folder) / built.name
        for tuned in TUNED:
            options = [*OPTIONS, *filter(None, [tuned])]
            command = [compiler, *options, "-o", str(part), str(SOURCE)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                part.replace(built)
                return
    raise OSError(f"{compiler} cannot compile {SOURCE}")


def _processor() -> str:
    """What tells processors apart that need other machine code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"
