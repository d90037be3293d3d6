"""`<name>.part/`, where an output is in the making: what is in it, whose it is, and what of it is ever removed.

    lock          written first, removed last: held by the process that works here; its content marks it as ours
    state.json    whose work it is; `complete`: `new/` is whole, and has taken its place if it is no longer here
    matrices/, tuning.safetensors, kept/    what an interrupted run goes on from
    new/          the output in the making
    old/          for a moment, what was in its place: it is there only while, or after, a whole `new/` takes that

So wherever a process is killed, the next one knows from names alone what is left to do (`finish`).
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import read_object, write_json
from kquant_cli.files.locks import begins_as_lock, last_holder

LOCK, STATE, MATRICES, KEPT, TUNING, NEW, OLD = (
    "lock",
    "state.json",
    "matrices",
    "kept",
    "tuning.safetensors",
    "new",
    "old",
)
WORK = (MATRICES, KEPT, TUNING)
FOLDERS = (NEW, OLD, MATRICES, KEPT)


class NotOursError(KQuantError):
    """What is in the part folder's place is not ours, or holds something that is not."""


def part_of(out: Path) -> Path:
    """The part folder of the output `out`."""
    return out.with_name(out.name + ".part")


def require_ours(part: Path) -> None:
    """Raise NotOursError unless the part folder is not there, is empty, or is ours with nothing else and no link in it.

    Ours: its lock was written by kquant (or its state, as kquant did before there were locks), or it holds no more than
    the beginning of a lock: who made it was killed, or had no space, before all of it was written.
    """
    if part.is_symlink() or (part.exists() and not part.is_dir()):
        raise NotOursError(f"{part}: is needed for unfinished work, but is no folder; move it, or choose another -o")
    if not part.exists() or not (names := sorted(entry.name for entry in os.scandir(part))):
        return
    bare = names == [LOCK] and _is_file(part / LOCK) and begins_as_lock(part / LOCK)
    if not (bare or last_holder(part / LOCK) is not None or isinstance(_state(part).get("owner"), str)):
        raise NotOursError(f"{part}: is needed for unfinished work, but is not kquant's; move it, or choose another -o")
    for name in names:
        path = part / name
        known = (name in FOLDERS and path.is_dir()) or (_is_ours(name) and _is_file(path))
        if path.is_symlink() or (path.exists() and not known):  # it may be gone: of one who is at work
            raise NotOursError(f"{path}: was not put there by kquant; move it, or choose another -o")
    for name in (MATRICES, KEPT):
        for entry in os.scandir(part / name) if name in names else ():
            if entry.is_symlink():
                raise NotOursError(f"{entry.path}: is a link, which kquant did not make; move it, or choose another -o")


def open_part(out: Path, owner: str) -> tuple[Path, bool]:
    """The part folder of `out`, made if need be, for the work of `owner`; whether work of another was thrown away.

    Raises
    ------
    KQuantError
        The folder is there and is not ours.
    """
    part = part_of(out)
    require_ours(part)
    part.mkdir(parents=True, exist_ok=True)
    found = _state(part).get("owner")
    if found == owner:
        return part, False
    discarded = found is not None or has_work(part, KEPT)
    if discarded:
        clear(part, KEPT)
    write_json(part / STATE, {"owner": owner})
    return part, discarded


def fresh(part: Path) -> Path:
    """An empty folder to write into."""
    drop_new(part)
    (part / NEW).mkdir()
    return part / NEW


def drop_new(part: Path) -> None:
    """Remove an output in the making, which is not complete from then on."""
    state = _state(part)
    if state.pop("complete", False):
        write_json(part / STATE, state)
    _remove(part / NEW)


def mark_complete(part: Path) -> None:
    """What `fresh` gave is written whole."""
    write_json(part / STATE, {**_state(part), "complete": True})


def is_complete(part: Path) -> bool:
    """Whether `new/` is whole, or has been."""
    return _state(part).get("complete") is True


def has_work(part: Path, *but: str) -> bool:
    """Whether there is something that a run could go on from, or an output that was moved aside."""
    if (part / OLD).exists() or (is_complete(part) and (part / NEW).exists()):
        return True
    return any(
        (part / name).is_file() or ((part / name).is_dir() and any((part / name).iterdir()))
        for name in WORK
        if name not in but
    )


def clear(part: Path, *but: str) -> None:
    """Remove what is ours but the lock, the state last; `new/` first, so that a complete output is never half there."""
    for name in FOLDERS:
        if name not in but:
            _remove(part / name)
    for entry in list(os.scandir(part)):
        if entry.name not in (LOCK, STATE) and _is_ours(entry.name) and _is_file(Path(entry.path)):
            Path(entry.path).unlink()
    with suppress(FileNotFoundError):
        (part / STATE).unlink()


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def _state(part: Path) -> dict[str, Any]:
    """What the state says; nothing where it is damaged. KQuantError where it cannot be read now."""
    if not _is_file(part / STATE):
        return {}
    try:
        return read_object(part / STATE)
    except KQuantError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return {}


def _is_ours(name: str) -> bool:
    """Whether a file of that name in our part folder is ours: one of these, or `whole_file`'s while it is written."""
    return name in (LOCK, STATE, TUNING) or (name.startswith(".") and name.endswith(".tmp"))


def _is_file(path: Path) -> bool:
    """Whether it is a plain file, and no link."""
    try:
        return S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
