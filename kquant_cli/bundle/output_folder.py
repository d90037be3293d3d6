"""Where a folder is written: aside, in `<name>.part` (part_folder.py), and then in its place by renaming.

    with open_output(out, source, say) as part:      # locked, and what an earlier run left half done is finished
        folder = fresh(part)
        ...                                          # written into `folder`
        put_in_place(part, out, check)

At every moment there is the old output, or the new one, or both of them in the part folder; then the next run puts the
new one in its place. Nothing that is not ours is removed, and no link is followed.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kquant_cli.bundle.part_folder import (
    LOCK,
    NEW,
    OLD,
    NotOursError,
    clear,
    drop_new,
    has_work,
    is_complete,
    mark_complete,
    part_of,
    require_ours,
)
from kquant_cli.errors import KQuantError, printable
from kquant_cli.files.locks import Holder, Lock, LockHeldError, lock

LONGEST_ENDING = ".stats.safetensors"  # of the files beside an output
LONGEST_NAME = "matrices/." + "x" * 53  # in a part folder
TRIES = 8  # at a part folder that others make and remove meanwhile
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_place(out: Path, source: Path) -> None:
    """Raise KQuantError when `out` is the current folder, a file, below a file, or overlaps with `source`.

    And where its name is too long, or cannot be shown.
    """
    shown = printable(str(out)).replace("\n", " ")
    if shown != str(out):
        raise KQuantError(f"{shown}: has a character in its name that cannot be shown; choose another --output")
    if out.name == "..":
        raise KQuantError(f"{out}: ends in `..`; give the folder of --output by its own name")
    try:
        place, origin = out.resolve(), source.resolve()
        if place == Path.cwd().resolve():
            raise KQuantError(f"{out}: is the current folder; choose another --output")
        if place.is_relative_to(origin) or origin.is_relative_to(place):
            raise KQuantError(f"{out}: overlaps with {source}, which is read; choose another --output")
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise KQuantError(f"{out}: exists and is not a folder; choose another --output")
        if not next(parent for parent in place.parents if parent.exists()).is_dir():
            raise KQuantError(f"{out}: would be below a file; choose another --output")
        for probe in (place.with_name(place.name + LONGEST_ENDING), part_of(place) / LONGEST_NAME):
            with suppress(FileNotFoundError, NotADirectoryError):
                probe.lstat()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise KQuantError(f"{out}: is not a possible folder ({why}); choose another --output") from error


def is_free(out: Path) -> bool:
    """Whether nothing, or an empty folder, is there."""
    return not out.exists() or not any(out.iterdir())


@contextmanager
def open_output(
    out: Path, source: Path, say: Callable[[str], None] = lambda _: None, *, reading: bool = False
) -> Iterator[Path | None]:
    """Within it this process alone writes the output `out`; gives its part folder, which is gone after a whole run.

    What an earlier run had written whole is put in its place first. At the end the part folder stays only with what a
    run could go on from; folders that were made on the way to it go with it. `reading`: nothing is to be written, so
    where no part folder can be made there is none (None).

    Raises
    ------
    KQuantError
        Another process writes there, the place will not do (`check_place`), or something there is not ours.
    OSError
        It cannot be written.
    """
    check_place(out, source)
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        held = _take(out)
    except (OSError, NotOursError):
        if not reading:
            _remove_empty(made)
            raise
        yield None
        return
    part = held.path.parent
    if not held.exclusive:
        say(f"note: {part} is on a file system without locks: see that no other process writes {out} meanwhile")
    try:
        if _finish(part, out):
            say(f"note: {out}: put in its place what an interrupted run had written")
        yield part
    finally:
        _leave(held, out, made)


def put_in_place(part: Path, out: Path, check: Callable[[Path], None]) -> None:
    """Give what was written the place `out`; what is there is moved aside, and removed when the part folder is left.

    `check(folder)`: raises KQuantError when what is in `folder`, which is `out` or where it was moved to, may not go.
    """
    check(out)
    mark_complete(part)
    if not is_free(out):
        out.rename(part / OLD)
        try:
            check(part / OLD)  # what came between the two
        except KQuantError:
            (part / OLD).rename(out)
            raise
    _place(part, out)


def require_space(part: Path, out: Path, needed: int) -> None:
    """Raise KQuantError when fewer than `needed` bytes are free, with what is in the part folder already."""
    there = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    usage = shutil.disk_usage(part)
    if usage.total and needed > usage.free + there:  # some file systems do not say
        raise KQuantError(
            f"{out}: {amount(needed)} are needed and {amount(usage.free + there)} are free; free some, or choose "
            f"another --output"
        )


@contextmanager
def writing(out: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into one sentence; `needed`: about how many bytes the work takes, 0: not said."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            about = f", about {amount(needed)} are needed" if needed else ""
            raise KQuantError(
                f"{out}: no space left on the device{about}; free some and run the same command again"
            ) from error
        raise KQuantError(f"{out}: cannot be written ({error.strerror or error}); choose another --output") from error


def amount(nbytes: int) -> str:
    """So many bytes in words: 4 GB, 1.5 MB, 12 kB, 80 bytes."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"


def _take(out: Path) -> Lock:
    """The lock of the output, in its part folder; others may make that or remove it meanwhile."""
    part, tries = part_of(out), 0
    while True:
        tries += 1
        try:
            require_ours(part)
            part.mkdir(parents=True, exist_ok=True)
            held = lock(part / LOCK)
            try:
                require_ours(part)
            except BaseException:
                held.release(remove=False)
                raise
            return held
        except LockHeldError as error:
            raise KQuantError(
                f"{out}: is being written by {_words(error.holder)}; wait for its end, or choose another --output"
            ) from error
        except (FileNotFoundError, NotOursError):
            if tries == TRIES:
                raise
            time.sleep(0.01)


def _words(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.pid} on {holder.host} since {holder.since}"


def _finish(part: Path, out: Path) -> bool:
    """Do what an earlier run left to do of giving `new/` its place; whether that was more than removing the rest."""
    if not is_complete(part):
        return False
    if not (part / NEW).exists():  # it has its place
        clear(part)
        return False
    if is_free(out):
        _place(part, out)
        clear(part)
        return True
    if (part / OLD).exists():
        raise KQuantError(
            f"{out}: was made while {part} waits to take its place; move {out} away, and run the same command again"
        )
    return False


def _place(part: Path, out: Path) -> None:
    if out.exists():
        out.rmdir()
    (part / NEW).rename(out)


def _leave(held: Lock, out: Path, made: list[Path]) -> None:
    """Remove what no run can go on from, and let go. What cannot be removed stays for the next one."""
    part, remove = held.path.parent, False
    try:
        with suppress(OSError, KQuantError):
            _finish(part, out)
            if not (part / OLD).exists():
                drop_new(part)
            if remove := not has_work(part):
                clear(part)
    finally:
        with suppress(OSError):
            held.release(remove=remove)
    if remove:
        _remove_empty([part, *made])


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that are empty, each within the next."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
