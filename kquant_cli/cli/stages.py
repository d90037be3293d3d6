"""Progress of steps with a name: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal

Stage = Callable[[str, int, int], None]


@contextmanager
def show_stages(console: Console) -> Iterator[Stage]:
    """Yield what is to be told of what is done, and how much of how much."""
    if not console.is_terminal:
        yield PlainStage(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        steps = {}

        def stage(what: str, done: int, total: int) -> None:
            if what not in steps:
                steps[what] = bar.add_task(what, total=total)
            bar.update(steps[what], completed=done, total=total, visible=done < total)

        yield stage


class PlainStage:
    """Steps for a log file: one every ten seconds, and the first and the last of those that `ends` are wanted of."""

    def __init__(self, say: Callable[[str], None], *, ends: bool = False) -> None:
        self._say, self._ends = say, ends
        self._said = float("-inf") if ends else time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say it where it is time."""
        now = time.monotonic()
        if (self._ends and done == total) or now - self._said >= LINE_SECONDS:
            self._said = now
            self._say(f"{what}: {done} of {total}")
