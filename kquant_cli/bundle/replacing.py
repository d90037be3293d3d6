"""What an output that is to be replaced may hold: what kquant wrote there, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from kquant_cli.bundle.format import MANIFEST, MOST_BYTES, RESULTS, RUN
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import find_object

NAMED = 3  # of the files that are in the way


def require_bundle_files(folder: Path, out: Path) -> None:
    """Raise KQuantError, naming them, when `folder` holds more than its manifest lists and the results kept there.

    `out`: what the folder is called. Links are not followed, and not ours.
    """
    files = (find_object(folder / MANIFEST, MOST_BYTES) or {}).get("files")
    listed = {MANIFEST, RUN, *files} if isinstance(files, dict) else set()
    require_only(folder, out, listed)


def require_only(folder: Path, out: Path, listed: Collection[str]) -> None:
    """Raise KQuantError, naming them, when `folder` holds files that are neither `listed` (relative) nor results."""
    others = []
    for name in _names(folder):
        if (folder / name).is_symlink() or not (name in listed or _is_kept_result(folder, name)):
            others.append(name)
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise KQuantError(
            f"{out}: holds what kquant did not write and --overwrite would remove: "
            f"{', '.join(others[:NAMED])}{more}; move that away, or choose another --output"
        )


def _names(folder: Path) -> list[str]:
    """All below the folder but folders, and links to folders, by relative path."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _is_kept_result(folder: Path, name: str) -> bool:
    """Whether it is what `results.keep_result` writes, of whichever version, and so of the bundle that goes."""
    parts = name.split("/")
    if len(parts) != 2 or parts[0] != RESULTS or not name.endswith(".json"):
        return False
    entry = find_object(folder / name) or {}
    return all(isinstance(entry.get(key), str) for key in ("task", "measured", "sentence"))


def _raise(error: OSError) -> None:
    raise error
