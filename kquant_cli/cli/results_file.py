"""`--json FILE`, asked about before the work whose result goes there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryFile

from kquant_cli.errors import KQuantError


def require_results_file(path: Path | None) -> None:
    """Raise KQuantError when the file of `--json` cannot be written; nothing is left there."""
    if path is None:
        return
    try:
        if path.exists():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if path.is_char_device():  # such as /dev/full, which says so when it is written to; JSON begins with blanks
                with path.open("wb", buffering=0) as file:
                    file.write(b" ")
        else:
            with TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
                pass
    except (OSError, ValueError) as error:  # ValueError: a name with NUL, or with half a character
        why = (isinstance(error, OSError) and error.strerror) or "no possible name"
        raise KQuantError(f"--json {path}: cannot be written ({why}); give another file") from error
