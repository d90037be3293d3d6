"""Too little memory, too little disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torture_kinds.judge import tree
from torture_kinds.kills import judged, require_right_end
from torture_kinds.kind import Case, Kind
from torture_kinds.process import Outcome, Work, kquant, run
from torture_kinds.world import HOSTILE, SCENARIOS


def _within(case: Case, scenario_name: str, inside: Work, when: str, *, may_die: bool = False) -> str:
    """Judge a run that has what `inside` leaves it."""
    scenario = SCENARIOS[scenario_name]
    before = case.world.begin(scenario, case.folder)
    outcome = run(kquant(*scenario.args), case.folder, inside=inside)
    if may_die and _died_in_a_library(outcome):
        require_right_end(case, scenario, f"a death with {when}")
        return "died"
    return judged(case, scenario, outcome, before, when)


def _died_in_a_library(outcome: Outcome) -> bool:
    """Whether torch, or what it stands on, ended the process for want of memory, which no Python can prevent.

    So do products of oneDNN and MKL (by a signal) and the loader (127: no memory for a thread).
    """
    return outcome.code in (-signal.SIGSEGV, -signal.SIGABRT, 127) and "Traceback" not in outcome.err


def _memory(case: Case) -> str:
    name = case.draw.choice(HOSTILE)
    more = int(2 ** case.draw.uniform(24, 28.5))  # 16 to 360 MiB beyond what the process has at the start

    def inside() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    return _within(case, name, inside, f"{more / 2**20:.2f} MiB of memory left", may_die=True)


def _disk(case: Case) -> str:
    name = case.draw.choice(HOSTILE)
    way = case.draw.choice(("file size", "small disk", "full output"))
    if way == "file size":
        limit = int(2 ** case.draw.uniform(0, 18))
        inside = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # noqa: E731
        return _within(case, name, inside, f"files of at most {limit} bytes")
    if way == "full output":
        return _within(case, name, _to_a_full_device, "standard output on a full device")
    size = case.draw.randrange(400, 1400)
    with small_disk(case.folder.parent / f"{case.folder.name}-disk", size) as disk:
        inner = Case(case.world, disk / "case", case.number, case.draw)
        if not _fits(inner, name):
            return "refused"
        return _on_small_disk(inner, name, f"a disk of {size} KiB")


def _to_a_full_device() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _fits(case: Case, name: str) -> bool:
    """Whether there is room for the start of the case at all."""
    try:
        case.world.begin(SCENARIOS[name], case.folder)
    except OSError:
        return False
    return True


def _on_small_disk(case: Case, name: str, when: str) -> str:
    scenario = SCENARIOS[name]
    before = tree(case.folder)
    outcome = run(kquant(*scenario.args), case.folder)
    if outcome.code:
        subprocess.run(["mount", "-o", "remount,size=8m", case.folder.parent], check=True)
    return judged(case, scenario, outcome, before, when)


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of that size at `folder`, where one may be mounted; else a plain folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "torture", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            subprocess.run(["rm", "-r", folder], check=True)


MEMORY = Kind("memory", "address space for 16 to 360 MiB beyond what the process begins with", _memory)
DISK = Kind(
    "disk", "files limited to 1 byte to 256 KiB; a disk of 0.4 to 1.4 MB; standard output on a full device", _disk
)
