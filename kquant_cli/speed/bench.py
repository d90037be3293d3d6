"""Models beside each other: each is measured in a process of its own, in turns, so that both see the same machine.

A process of its own, because the largest resident set of a process never shrinks; in turns, because other work on the
machine comes and goes. Of the rounds the median is kept, and of memory the largest.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.speed.measure import Measurement, Workload, measure


@dataclass(frozen=True)
class Row:
    """A model to measure, and how: `dtype` as `kquant eval --dtype`, `environment` for its process alone."""

    path: str
    kind: str  # bundle or dense
    dtype: str
    environment: Mapping[str, str] = field(default_factory=dict)


def bench(
    rows: Sequence[Row], device: str, workload: Workload, rounds: int, say: Callable[[str], None]
) -> list[Measurement]:
    """Measure every row `rounds` times, in turns; the rows' medians, in their order.

    Raises KQuantError where a model cannot be loaded or run, or its process ends (as where memory runs out).
    """
    found: list[list[Measurement]] = [[] for _ in rows]
    for turn in range(rounds):
        for row, measurements in zip(rows, found, strict=True):
            say(f"round {turn + 1} of {rounds}: {row.path} ({row.kind}, {row.dtype})")
            measurements.append(_in_a_process(row, device, workload))
    return [_median(measurements) for measurements in found]


def _in_a_process(row: Row, device: str, workload: Workload) -> Measurement:
    others = set(active_children())
    begin: Any = {"initializer": _set_environment, "initargs": (dict(row.environment),)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **begin) as pool:
        try:
            with _interrupts_held_back():
                measured = pool.submit(measure, row.path, device, row.dtype, workload)
            return measured.result()
        except KeyboardInterrupt:
            for process in set(active_children()) - others:
                process.terminate()
            raise
        except BrokenProcessPool as error:
            raise KQuantError(
                f"the process that measured {row.path} ended: most often memory ran out; give a smaller model or a "
                "16-bit --dtype"
            ) from error


def _set_environment(values: Mapping[str, str]) -> None:
    os.environ.update(values)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C, which a terminal sends to all processes, waits here, and for ever in a process that is started here."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _median(measurements: Sequence[Measurement]) -> Measurement:
    """The median of every time and rate, the maximum of every memory."""
    first = measurements[0]
    values: dict[str, Any] = {}
    for name in (part.name for part in dataclasses.fields(Measurement)):
        given = [getattr(measurement, name) for measurement in measurements]
        if name.endswith("memory"):
            values[name] = None if None in given else max(given)
        elif isinstance(getattr(first, name), float):
            values[name] = statistics.median(given)
        else:
            values[name] = given[0]
    return Measurement(**values)
