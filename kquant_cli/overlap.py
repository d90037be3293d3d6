"""What comes next and what came before, done in threads while this is computed: reading ahead, writing behind.

One item at most is ahead and one behind, so memory holds three where it held one, however many there are. Reading,
writing and hashing let other threads run. An error of a thread is raised in the one that works with it, at the item
that it belongs to; whoever leaves, for whatever reason, waits for the one read or write that is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = ParamSpec("Given")
END: Final = object()


@contextmanager
def ahead(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """The same items: the next is made (read, say) in a thread while the one before is worked with.

    with ahead(map(checkpoint.read, names)) as tensors:
        for name, tensor in zip(names, tensors, strict=True):
            ...

    Nothing is made before the first is asked for.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="kquant-ahead") as thread:

        def following() -> Iterator[Item]:
            coming: Future[Any] = thread.submit(next, source, END)
            while (item := coming.result()) is not END:
                coming = thread.submit(next, source, END)
                held = [item]
                del item
                yield held.pop()  # and nothing here keeps it

        yield following()


class Behind(Generic[Result]):
    """Work that is done behind: each piece begins when the one before is finished, and `run` waits only for that.

    with Behind() as behind:
        for tensor in tensors:
            behind.run(write, tensor)

    The block ends when all is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kquant-behind")
        self._last: Future[Result] | None = None

    def run(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Future[Result]:
        """Begin `work`; an error of the piece before is raised here, and this one is not begun."""
        self.wait()
        self._last = self._thread.submit(work, *args, **kwargs)
        return self._last

    def wait(self) -> None:
        """Until the last piece is done; raises its error."""
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> Behind[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()
