"""Share a loop over blocks between threads, each of which computes alone.

torch starts and joins its threads around every operation. An operation on a block that stays in the cache takes less
than that, and much less where another process holds a core: so here the blocks are shared out, not the operations.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def for_each(work: Callable[..., Result], *blocks: Iterable[Any], device: torch.device) -> list[Result]:
    """`work` for each block (or for the blocks of several tensors side by side), in any order; the results in theirs.

    On a CPU in as many threads as torch would use; elsewhere, or with a single thread, one after the other. A block is
    computed in one thread, a single one too: the results are the same with any number of threads.
    """
    together = list(zip(*blocks, strict=True))
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        return [work(*block) for block in together]
    # inference mode belongs to a thread, and a tensor made in it can be written to in no other mode
    in_mode = torch.inference_mode(torch.is_inference_mode_enabled())(work)
    return list(_pool(threads).map(lambda block: in_mode(*block), together))


def alone(work: Callable[..., Result], *arguments: Any, device: torch.device) -> Result:
    """`work` of the arguments in a single thread, if on a CPU: for what must not depend on how many there are.

    A sum over a whole tensor is such a thing: torch adds up a part in each thread, and so rounds otherwise.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        return work(*arguments)
    in_mode = torch.inference_mode(torch.is_inference_mode_enabled())(work)
    return _pool(threads).submit(in_mode, *arguments).result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch's own number of threads, which is kept for each thread, is one."""
    started = Barrier(threads + 1)

    def compute_alone() -> None:
        torch.get_num_threads()  # a thread takes over the general number when it first asks: it must not do so later
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="kquant")
    for _ in range(threads):
        pool.submit(compute_alone)
    started.wait()
    torch.set_num_threads(threads)  # the last number set is also that of threads yet to come
    # The C library gives freed memory back at once above a threshold, and every new temporary would be paged in again.
    # It raises the threshold to the largest block below 32 MiB that it sees freed; this one takes no memory, untouched.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
