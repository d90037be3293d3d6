"""Errors of the file system at any call that reads, writes, renames or syncs; and reads and writes of half."""

from __future__ import annotations

import errno
import os

from torture_kinds.calls import Log
from torture_kinds.kills import judged
from torture_kinds.kind import Case, Kind
from torture_kinds.process import kquant, run
from torture_kinds.world import HOSTILE, SCENARIOS, watching

FAULTS = ("ENOSPC", "EIO", "EACCES", "EINTR", "short", "EROFS", "EMFILE")


def _fault(case: Case) -> str:
    scenario, fault = SCENARIOS[case.draw.choice(HOSTILE)], case.draw.choice(FAULTS)
    number = case.draw.randrange(case.world.calls[scenario.name, "reads"])
    on = case.draw.random() < 0.5  # and at every call after it, as on a disk that is full
    before = case.world.begin(scenario, case.folder)
    log, struck = Log(), Log()

    def strike(n: int, name: str, path: str) -> str | None:
        if n < number or (n > number and not on):
            return None
        if n == number:
            struck.write(n, f"{name} {path}")
        if fault == "short":
            return "short"
        code = getattr(errno, fault)
        raise OSError(code, os.strerror(code), path)

    outcome = run(kquant(*scenario.args), case.folder, inside=watching(case.folder, log, "reads", strike))
    when = f"{fault} at {struck.last}" + (" and after" if on else "")
    return judged(case, scenario, outcome, before, when)


KIND = Kind(
    "faults",
    "an error of the system (no space, input/output, no permission, interrupted, read-only, too many files) at a read, "
    "write, sync or rename, or at all from there on; reads and writes of half; then the same command undisturbed",
    _fault,
)
