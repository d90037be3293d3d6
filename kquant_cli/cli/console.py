"""Where output goes: results to standard output and to `--json FILE`, everything else to standard error."""

import json
from pathlib import Path

from rich.console import Console

from kquant_cli.errors import KQuantError

console = Console()
log = Console(stderr=True)


def write_results(path: Path, values: object) -> None:
    """Write JSON for `--json FILE`; KQuantError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise KQuantError(f"--json {path}: cannot be written ({error.strerror}); give another file") from error
