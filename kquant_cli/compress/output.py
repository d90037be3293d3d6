"""Whether a bundle may be written where it is to go: asked before any work, and again before it takes its place."""

from __future__ import annotations

import errno
from pathlib import Path

from kquant_cli.bundle.format import is_bundle
from kquant_cli.bundle.output_folder import check_place, is_free, require_space, writing
from kquant_cli.bundle.reader import open_bundle
from kquant_cli.bundle.replacing import require_bundle_files
from kquant_cli.compress.kept_files import require_kept_files
from kquant_cli.compress.plan import Plan
from kquant_cli.errors import KQuantError


def check_output(out: Path, source: Path) -> None:
    """KQuantError where no bundle may be written to `out`: of what is there, only bundles are replaced."""
    check_place(out, source)
    with writing(out, 0):
        if not is_free(out) and not is_bundle(out):
            raise KQuantError(
                f"{out}: exists and is not a kquant bundle, so it is not touched; choose another --output"
            )


def require_same(out: Path, fingerprint: str) -> None:
    """Raise KQuantError unless the bundle that is there is whole and of that fingerprint."""
    if open_bundle(out).manifest.get("fingerprint") != fingerprint:
        raise KQuantError(
            f"{out}: is a bundle of other settings or of another source; give --overwrite to replace it, or another "
            f"--output"
        )


def is_taken(out: Path, overwrite: bool) -> bool:
    """Whether something is there that is not to be replaced."""
    return not overwrite and not is_free(out)


def needed_bytes(plan: Plan) -> int:
    """About how many bytes a run takes at most: the bundle, and each finished matrix beside it."""
    return plan.estimated_bytes + sum(job.nbytes for job in plan.jobs)


def ready(part: Path | None, out: Path, needed: int, *, overwrite: bool) -> Path:
    """The part folder, when nothing is in the way of a run."""
    if part is None:
        raise PermissionError(errno.EACCES, "its folder cannot be written")
    require_replaceable(out, out, overwrite=overwrite)
    require_kept_files(out)
    require_space(part, out, needed)
    return part


def require_replaceable(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Raise KQuantError unless `folder`, which is `out` or was, is free or a bundle that may be replaced."""
    if is_free(folder):
        return
    if not overwrite or not is_bundle(folder):
        raise KQuantError(f"{out}: was made by another in the meantime; choose another --output")
    require_bundle_files(folder, out)
