#!/usr/bin/env python3
"""Hostile runs of kquant: kills, faults, limits, pairs of runs, changing sources, damaged files, odd names.

    python scripts/torture.py                              # ten minutes, all kinds
    python scripts/torture.py --only kills faults --cases 400
    python scripts/torture.py --only kills --case 17       # one again, as a bad case says

Each case is to end right (as a run that nothing disturbs) or in a clean refusal: one sentence on standard error, exit
code 2, at most 10 s and 2 GB, and nothing changed but the output. All else is bad, and printed with what repeats it.
Exit code 1: there was a bad case. The cases follow from the seed; how many there are in some minutes does not. POSIX
only, Linux best. docs/trust.md has a table, made from the file that `--json` writes.
"""

from __future__ import annotations

import os
import sys

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"COLUMNS": "160", "TERM": "xterm", "NO_COLOR": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import argparse
import itertools
import multiprocessing
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from results import machine, write_results
from torture_kinds import KINDS
from torture_kinds.judge import BadError
from torture_kinds.kind import Case, Kind
from torture_kinds.world import World, make_world

MINUTES = 10.0
STALLED = 400.0  # seconds without an end of any case: of one it takes at most some runs of 40


@dataclass
class Row:
    """What came of a kind; `bad` by the number of the case."""

    kind: Kind
    counts: Counter[str] = field(default_factory=Counter)
    bad: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, end: str, why: str) -> None:
        """One more case."""
        self.counts[end] += 1
        if end == "bad":
            self.bad[number] = why


def main() -> None:
    args = parsed()
    began = time.monotonic()
    minutes = args.minutes if args.minutes or args.cases or args.case is not None else MINUTES
    kinds = [KINDS[name] for name in args.only or KINDS]
    with tempfile.TemporaryDirectory(prefix="kquant-torture-") as folder:
        world = make_world(Path(folder))
        rows = []
        for place, kind in enumerate(kinds):
            now = time.monotonic()
            end = now + (began + 60 * minutes - now) / (len(kinds) - place) if minutes else float("inf")
            numbers = iter([args.case]) if args.case is not None else chosen(kind, world, args.seed, args.cases)
            rows.append(run_kind(kind, world, numbers, args.seed, end, args.jobs))
    seconds = time.monotonic() - began
    show(rows, seconds)
    write_results(args.json, {"machine": machine(), "seed": args.seed, "seconds": round(seconds), "rows": facts(rows)})
    sys.exit(any(row.bad for row in rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help=f"for all kinds together; {MINUTES:g} unless --cases is given")
    parser.add_argument("--cases", type=int, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--case", type=int, help="this case of the one kind that --only names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at once")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    args = parser.parse_args()
    if args.case is not None and len(args.only or ()) != 1:
        parser.error("--case needs the one kind that it is of: --only KIND")
    return args


def chosen(kind: Kind, world: World, seed: int, cases: int | None) -> Iterator[int]:
    """The numbers of the cases: all of them in an order that the seed shuffles, or as many as are asked for."""
    size = kind.size(world) if kind.size else None
    numbers = itertools.count() if size is None else iter(random.Random(seed).sample(range(size), size))
    return itertools.islice(numbers, cases)


def run_kind(kind: Kind, world: World, numbers: Iterator[int], seed: int, end: float, jobs: int) -> Row:
    """Run cases until there are no more or it is `end` o'clock; bad ones are printed as they come."""
    row, pending = Row(kind), dict[Future[tuple[str, str]], int]()

    def take() -> bool:
        """Whether a case has ended; else the workers do not answer, and are ended with what they have."""
        done = wait(pending, STALLED, FIRST_COMPLETED).done
        if not done:
            print(f"{kind.name}: no answer to the cases {sorted(pending.values())}, which are not counted", flush=True)
            pending.clear()
            for worker in multiprocessing.active_children():
                worker.kill()
        for future in done:
            number = pending.pop(future)
            row.add(number, *future.result())
            if number in row.bad:
                print(f"bad: {kind.name}: {row.bad[number]}", flush=True)
                print(f"     again: --seed {seed} --only {kind.name} --case {number}", flush=True)
        return bool(done)

    # the workers are copies of this process, which has everything imported and no other thread
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), given.append, (world,)) as pool:
        for place, number in enumerate(numbers):
            if time.monotonic() > end and place >= jobs:  # a few of each kind, however late it is
                break
            pending[pool.submit(run_case, kind.name, seed, number)] = number
            if len(pending) > jobs and not take():
                break
        while pending:
            take()
    return row


given: list[World] = []  # of a worker


def run_case(name: str, seed: int, number: int) -> tuple[str, str]:
    """How a case ends ("right", "refused", "died" or "bad"), and why it is bad."""
    world = given[0]
    folder = Path(tempfile.mkdtemp(dir=world.folder, prefix=f"{name}-{number}-"))
    try:
        return KINDS[name].run(Case(world, folder / "case", number, random.Random(f"{seed} {name} {number}"))), ""
    except BadError as error:
        return "bad", str(error)
    except Exception:
        return "bad", f"the case itself fails: {traceback.format_exc()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def facts(rows: list[Row]) -> list[dict[str, object]]:
    """The table as JSON."""
    ends = ("right", "refused", "died", "bad")
    return [
        {"kind": row.kind.name, "about": row.kind.about, "cases": row.counts.total()}
        | {end: row.counts[end] for end in ends}
        for row in rows
    ]


def show(rows: list[Row], seconds: float) -> None:
    """The table on standard output."""
    print(f"{'kind':24}{'cases':>8}{'right':>8}{'refused':>9}{'died':>6}{'bad':>6}")
    for row in rows:
        counts = row.counts
        print(
            f"{row.kind.name:24}{counts.total():8}{counts['right']:8}{counts['refused']:9}{counts['died']:6}{counts['bad']:6}"
        )
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
