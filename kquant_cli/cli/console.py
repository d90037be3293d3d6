"""Where output goes: results to standard output and to `--json FILE`, everything else to standard error."""

import logging
from pathlib import Path

from rich.console import Console

from kquant_cli.errors import KQuantError

console = Console()
log = Console(stderr=True)


class LogHandler(logging.Handler):
    """Says what the library logs on standard error, above a progress bar that is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        log.print(record.getMessage(), highlight=False, markup=False)


def show_log() -> None:
    """Have the library's log said, from information up."""
    logger = logging.getLogger("kquant_cli")
    if not any(isinstance(handler, LogHandler) for handler in logger.handlers):
        logger.addHandler(LogHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def write_results(path: Path, values: object) -> None:
    """Write JSON for `--json FILE`; KQuantError when the file cannot be written."""
    from kquant_cli.files.json_object import write_json

    try:
        write_json(path, values, ascii_only=False)
    except OSError as error:
        raise KQuantError(f"--json {path}: cannot be written ({error.strerror}); give another file") from error
