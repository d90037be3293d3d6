"""What memory this process has, as Linux tells it."""

from pathlib import Path
from typing import Literal


def resident_set(which: Literal["now", "peak"]) -> int | None:
    """The process's resident set in bytes, now or at most so far; None where the system does not tell."""
    field = {"now": "VmRSS", "peak": "VmHWM"}[which]
    status = Path("/proc/self/status")  # not getrusage: its maximum counts the parent's, too
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)
