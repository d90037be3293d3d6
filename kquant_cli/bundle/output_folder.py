"""Where a folder is written: aside, in `<name>.part`, and then in its place in one step. What is not ours stays.

`<name>.part/` holds `state.json` (whose work it is), `new/` (the folder in the making) and, for a moment, `old/` (what
was in the place before).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import find_object, write_json

STATE = "state.json"


def check_place(out: Path, source: Path) -> None:
    """Raise KQuantError when `out` is the current folder, a file, below a file, or overlaps with `source`."""
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
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise KQuantError(f"{out}: is not a possible folder ({error}); choose another --output") from error


def is_free(out: Path) -> bool:
    """Whether nothing, or an empty folder, is there."""
    return not out.exists() or not any(out.iterdir())


def open_part(out: Path, owner: str) -> tuple[Path, bool]:
    """The folder `<out>.part` of `owner`, made if need be; and whether work of another owner there was thrown away.

    Raises
    ------
    KQuantError
        The folder is there and is not ours.
    """
    part, discarded = check_part(out), False
    if part.exists():
        discarded = _owner(part / STATE) != owner
        if discarded:
            shutil.rmtree(part)
    if not part.exists():
        part.mkdir(parents=True)
        write_json(part / STATE, {"owner": owner})
    return part, discarded


def check_part(out: Path) -> Path:
    """The folder `<out>.part`, whether it is there or not; KQuantError when it is not ours."""
    part = out.with_name(out.name + ".part")
    if part.exists() and not (part / STATE).is_file():
        raise KQuantError(f"{part}: is needed for unfinished work, but is not kquant's; move it, or choose another -o")
    return part


def fresh(part: Path) -> Path:
    """An empty folder to write into."""
    new = part / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    return new


def put_in_place(part: Path, out: Path) -> None:
    """Rename what was written to `out`; what is there gives way. The part folder is gone then."""
    if out.exists():
        shutil.rmtree(part / "old", ignore_errors=True)
        out.rename(part / "old")
    (part / "new").rename(out)
    shutil.rmtree(part)


@contextmanager
def writing(out: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into one sentence; `needed`: about how many bytes the work takes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise KQuantError(
                f"{out}: no space left on the device, about {needed / 1e6:.0f} MB are needed; free some and run the "
                f"same command again"
            ) from error
        raise KQuantError(f"{out}: cannot be written ({error.strerror or error}); choose another --output") from error


def _owner(state: Path) -> object:
    return (find_object(state) or {}).get("owner")
