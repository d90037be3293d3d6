"""Kill a run of kquant before each of its calls to the file system, and see what the same run makes of the rest.

    python tests/faults/die_before.py FOLDER --step 7 --offset 3

A run is a child of this process, which has imported all that it needs and computed nothing. For every `step`-th call
a child dies by SIGKILL right before it; then a second one runs to its end. Prints, as JSON, how many calls each kind of
run has, how many were tried, and a sentence on each that did not end as an undisturbed run does.

Calls: all that make, open for writing, write, move, remove or change a file or folder, and locks; seen by Python's
audit events, and by wrappers where it has none (fsync, writes).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import torch

from kquant_cli.bundle import open_bundle, write_dense
from kquant_cli.calibration import lazy_model  # noqa: F401 - imported once, for all children
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.files import atomic, safetensors_writer

EVENTS = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink", "os.utime"),
    *("fcntl.flock", "fcntl.lockf"),
}
QUICK = {"encoder": "uniform", "calibration": "none", "bits": 3}


def compress(out: Path, source: Path, overwrite: bool = False, **settings: Any) -> None:
    plan = make_plan(open_checkpoint(source), CompressConfig(**{**QUICK, **settings}))
    pipeline.compress(plan, out, overwrite=overwrite)


def decompress(out: Path, bundle: Path, dtype: torch.dtype | None = None, overwrite: bool = False) -> None:
    write_dense(open_bundle(bundle), out, dtype, overwrite=overwrite)


def interrupted(out: Path, source: Path) -> None:
    """Three matrices, and then an end that leaves them for the next run."""
    plan = make_plan(open_checkpoint(source), CompressConfig(**QUICK))
    done = itertools.count(1)

    def stop(_: object) -> None:
        if next(done) == 3:
            raise KeyboardInterrupt

    try:
        pipeline.compress(plan, out, progress=stop)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was to be interrupted")


def in_child(work: Callable[[], None], before: Callable[[int], None] | None = None) -> int:
    """How a child ended that did `work`: 0, or the signal; `before` is told the number of each call, from 1."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        if before is not None:
            count_calls(before)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def count_calls(before: Callable[[int], None]) -> None:
    numbers = itertools.count(1)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in EVENTS or writes:
            before(next(numbers))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            before(next(numbers))
            return function(*args)

        return call

    os.fsync, os.write = counted(os.fsync), counted(os.write)
    atomic.write_all = safetensors_writer.write_all = counted(atomic.write_all)
    sys.addaudithook(hook)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, but run.json, which says how long it took."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
        if path.name != "run.json"
    }


@dataclass(frozen=True)
class Kind:
    """A run that makes `b` in the folder that it is given, and what is there before it."""

    run: Callable[[Path], None]
    before: Callable[[Path], None] = lambda _: None


def kinds(source: Path, bundle: Path) -> dict[str, Kind]:
    return {
        "fresh": Kind(lambda place: compress(place / "b", source)),
        "empty folder": Kind(lambda place: compress(place / "b", source), lambda place: (place / "b").mkdir()),
        "overwrite": Kind(
            lambda place: compress(place / "b", source, overwrite=True),
            lambda place: compress(place / "b", source, bits=2),
        ),
        "resume": Kind(lambda place: compress(place / "b", source), lambda place: interrupted(place / "b", source)),
        "statistics": Kind(lambda place: compress(place / "b", source, encoder="annealed", calibration="random")),
        "decompress": Kind(lambda place: decompress(place / "b", bundle)),
        "decompress over": Kind(
            lambda place: decompress(place / "b", bundle, overwrite=True),
            lambda place: decompress(place / "b", bundle, torch.bfloat16),
        ),
    }


def try_kind(kind: Kind, folder: Path, step: int, offset: int) -> dict[str, Any]:
    """Kill such a run before every `step`-th call, from the one numbered 1 + offset on."""
    start, reference = folder / "start", folder / "whole"
    start.mkdir(parents=True)
    assert in_child(lambda: kind.before(start)) == 0
    shutil.copytree(start, reference)
    read, write = os.pipe()
    assert in_child(lambda: kind.run(reference), lambda _: os.writev(write, [b"."])) == 0
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        calls = len(pipe.read())
    tried, bad = range(1 + offset % step, calls + 1, step), []
    for number in tried:
        place = folder / str(number)
        shutil.copytree(start, place)
        if wrong := try_call(kind, place, number, contents(reference), contents(start / "b")):
            bad.append(f"call {number}: {wrong}")
        else:
            shutil.rmtree(place)
    return {"calls": calls, "tried": len(tried), "bad": bad}


def try_call(kind: Kind, place: Path, number: int, whole: dict[str, bytes], old: dict[str, bytes]) -> str:
    """Kill a run before that call and run again: what is wrong then, if anything. `old`: what was in `b`."""

    def die(now: int) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    ended = in_child(lambda: kind.run(place), die)
    if ended != signal.SIGKILL:
        return f"it ended with {ended} in place of being killed"
    now = contents(place / "b")
    if now not in (old, within(whole, "b")) and not (now == {} and (place / "b.part" / "old").exists()):
        return f"the output is neither the old nor the new one: {sorted(now)}"
    if strangers := {path.name for path in place.iterdir()} - {"b", "b.part"} - whole.keys():
        return f"{sorted(strangers)} are left beside it"
    if in_child(lambda: kind.run(place)) != 0:
        return "the next run failed"
    if (now := contents(place)) != whole:
        return f"the next run left something else: {sorted(now)}"
    return ""


def within(found: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {path.removeprefix(f"{name}/"): value for path, value in found.items() if path.startswith(f"{name}/")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder; what ended badly stays there")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--kinds", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, bundle = options.folder / "source", options.folder / "bundle"
    tiny_models.make("llama", source, num_hidden_layers=1)
    assert in_child(lambda: compress(bundle, source)) == 0
    found = {
        name: try_kind(kind, options.folder / name.replace(" ", "-"), options.step, options.offset)
        for name, kind in kinds(source, bundle).items()
        if not options.kinds or name in options.kinds
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
