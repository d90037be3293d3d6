"""A file of the source that changes while it is read: all of the old or all of the new, or a refusal that names it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torture_kinds.calls import Log
from torture_kinds.judge import BadError, Tree, is_right, require_untouched, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import kquant, run
from torture_kinds.world import SCENARIOS, watching

FILES = ["model.safetensors"] * 4 + ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
WAYS = ("written anew", "written anew, its time kept", "replaced", "truncated", "removed", "made a link")
RUNS = ("compress", "compress", "compress on own text", "resume")


def change(file: Path, way: str, other: Path) -> None:
    """Change a file in one of WAYS; `other` is a file of that name with other content of the same size."""
    before, content = file.stat(), other.read_bytes()
    if way == "truncated":
        os.truncate(file, before.st_size // 2)
    elif way in ("removed", "made a link", "replaced"):
        file.unlink()
        if way == "made a link":
            file.symlink_to(other)
        elif way == "replaced":
            file.write_bytes(content)
    else:
        with file.open("r+b") as opened:
            opened.write(content)
        if "time" in way:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _changed(case: Case) -> str:
    name, file, way = case.draw.choice(RUNS), case.draw.choice(FILES), case.draw.choice(WAYS)
    scenario = SCENARIOS[name]
    number = case.draw.randrange(case.world.calls[scenario.name, "reads"])
    other = case.world.source("other") / file
    if file != "model.safetensors":  # as long, and still what it should be
        other = case.folder.parent / f"{case.folder.name}-{file}"
        content = (case.world.source("one") / file).read_bytes()
        other.write_bytes(
            content.replace(b'"w90": 90', b'"w9O": 90').replace(b'"pad_token_id": 2', b'"pad_token_id": 1')
        )
    before = case.world.begin(scenario, case.folder)
    log, struck = Log(), Log()

    def strike(n: int, call: str, path: str) -> None:
        if n == number:
            struck.write(n, f"{call} {path}")
            change(case.folder / "source" / file, way, other)

    outcome = run(kquant(*scenario.args), case.folder, inside=watching(case.folder, log, "reads", strike))
    what = f"{name}, where {file} is {way} before {struck.last}"
    right, found = is_right(outcome, what), tree(case.folder)
    fresh = _undisturbed_from(case, name)
    if not right:
        require_untouched(_without(found, "source"), _without(before, "source"), "out", what)
        if file not in outcome.err and outcome.err.splitlines()[-1] != fresh[1]:
            raise BadError(f"{what}: the refusal does not name the file: {outcome.err[-300:]!r}")
        if is_right(run(kquant(*scenario.args), case.folder), f"{what}; then the same command again"):
            found = tree(case.folder)
            if _outputs(found) != fresh[0]:
                raise BadError(f"{what}; then the same command again: not what the changed source gives")
        return "refused"
    if _outputs(found) not in (_outputs(case.world.ends[name]), fresh[0]):
        raise BadError(f"{what}: the bundle is neither of the old source nor of the new")
    return "right"


def _undisturbed_from(case: Case, name: str) -> tuple[Tree | None, str]:
    """What the changed source gives, or the last line of its refusal."""
    fresh = case.folder.with_name(f"{case.folder.name}-fresh")
    fresh.mkdir()
    shutil.copytree(case.folder / "source", fresh / "source", symlinks=True)
    outcome = run(kquant(*SCENARIOS[name].args), fresh)
    return (_outputs(tree(fresh)), "") if outcome.code == 0 else (None, (outcome.err.splitlines() or [""])[-1])


def _without(found: Tree, top: str) -> Tree:
    return {name: value for name, value in found.items() if name.partition("/")[0] != top}


def _outputs(found: Tree) -> Tree:
    return {name: value for name, value in found.items() if name.startswith("out") and name != "out.txt"}


KIND = Kind(
    "source",
    "a file of the source is written anew (its time kept, too), replaced, truncated, removed or made a link before any "
    "call of `compress`",
    _changed,
)
