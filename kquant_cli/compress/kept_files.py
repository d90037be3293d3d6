"""The files that are kept beside a bundle: read and written in the part folder, and given their places from there.

So a run that is killed leaves no half-written file beside the bundle, and none that is not ours is replaced.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from safetensors import SafetensorError, safe_open

from kquant_cli.bundle.part_folder import KEPT
from kquant_cli.errors import KQuantError
from kquant_cli.files.atomic import whole_file, write_all
from kquant_cli.files.json_object import find_object

TEXT, STATISTICS, SENSITIVITY = ".text.safetensors", ".stats.safetensors", ".sensitivity.json"
ENDINGS = (TEXT, STATISTICS, SENSITIVITY)


def require_kept_files(out: Path) -> None:
    """Raise KQuantError when one of the names beside `out` is taken by what kquant does not keep there."""
    for file in _beside(out):
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            continue
        if not S_ISREG(mode) or not _is_ours(file):
            raise KQuantError(
                f"{file}: is not what kquant keeps under that name, so it is not replaced; move it away, or choose "
                f"another --output"
            )


@contextmanager
def kept_beside(out: Path, part: Path) -> Iterator[Path]:
    """Gives an `out` in the part folder with those files beside it; what changed of them takes its place at the end."""
    folder = part / KEPT
    folder.mkdir(exist_ok=True)
    inside = folder / out.name
    for file, copy in zip(_beside(out), _beside(inside), strict=True):
        if file.is_file() and not copy.exists():
            with whole_file(copy, durable=False) as target:
                write_all(target, file.read_bytes())
    try:
        yield inside
    finally:
        for file, copy in zip(_beside(out), _beside(inside), strict=True):
            if copy.exists():
                if file.exists() and filecmp.cmp(file, copy, shallow=False):
                    copy.unlink()
                else:
                    copy.replace(file)
        with suppress(OSError):  # what `whole_file` left there goes with the part folder
            folder.rmdir()


def _beside(out: Path) -> list[Path]:
    return [out.with_name(out.name + ending) for ending in ENDINGS]


def _is_ours(file: Path) -> bool:
    """Whether the file says of itself what kquant's say."""
    if file.name.endswith(SENSITIVITY):
        return "sensitivities" in (find_object(file) or {})
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError):
        return False
    wanted = {"settings", "sha256"} if file.name.endswith(TEXT) else {"kquant_statistics", "sha256"}
    return wanted <= metadata.keys()
