"""The memory of this process, as Linux tells it, and giving back what is free of it."""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Literal

PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4 and newer


def resident_set(which: Literal["now", "peak"]) -> int | None:
    """The process's resident set in bytes, now or at most so far; None where the system does not tell."""
    field = {"now": "VmRSS", "peak": "VmHWM"}[which]
    status = Path("/proc/self/status")  # not getrusage: its maximum counts the parent's, too
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def let_go(address: int, size: int) -> None:
    """Tell the system that these bytes are not needed soon: of a mapped file they then leave the process's memory.

    They stay what they are. Whole pages alone are meant; where the system knows no such request, nothing happens.
    """
    begin, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), PAGE_OUT)


def return_freed_memory() -> None:
    """Give what has been freed back to the system; else the C library keeps it."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
