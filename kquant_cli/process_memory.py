"""The memory of this process, as Linux tells it, and giving back what is free of it."""

import ctypes
import sys
from pathlib import Path
from typing import Literal


def resident_set(which: Literal["now", "peak"]) -> int | None:
    """The process's resident set in bytes, now or at most so far; None where the system does not tell."""
    field = {"now": "VmRSS", "peak": "VmHWM"}[which]
    status = Path("/proc/self/status")  # not getrusage: its maximum counts the parent's, too
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def return_freed_memory() -> None:
    """Give what has been freed back to the system; else the C library keeps it."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
