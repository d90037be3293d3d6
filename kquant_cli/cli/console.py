"""Where output goes: results to standard output and to `--json FILE`, everything else to standard error."""

from pathlib import Path

from rich.console import Console

from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import write_json

console = Console()
log = Console(stderr=True)


def write_results(path: Path, values: object) -> None:
    """Write JSON for `--json FILE`; KQuantError when the file cannot be written."""
    try:
        write_json(path, values, ascii_only=False)
    except OSError as error:
        raise KQuantError(f"--json {path}: cannot be written ({error.strerror}); give another file") from error
