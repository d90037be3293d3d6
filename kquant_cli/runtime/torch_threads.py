"""torch's own threads for compiled loops: no second pool beside it competes for the cores.

Loops are given the entry point `GOMP_parallel` of whatever OpenMP torch has loaded; where it has none (torch's on
macOS) they run in one thread.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

ALONE = 2**18  # weights times tokens below which one thread takes less time than it takes to start others


def threads_for(work: int) -> int:
    """How many threads are worth that many multiplications of a weight with a token's number."""
    return torch.get_num_threads() if work > ALONE else 1


@cache
def parallel() -> int | None:
    """The address of GOMP_parallel(function, data, threads, flags) in torch's library or in what that has loaded.

    GCC's OpenMP has it, whatever name a wheel gives the file, and so have LLVM's and Intel's; None: torch has another.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        with suppress(OSError, AttributeError):
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
    return None
