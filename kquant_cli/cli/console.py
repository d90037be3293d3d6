"""Where output goes: results to standard output and to `--json FILE`, everything else to standard error.

What is printed may come from a file that somebody else wrote: names of tensors, notes, sentences. So no console lets a
character through that steers a terminal, whatever the table, the bar or the message that it stands in.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment

from kquant_cli.errors import KQuantError, printable

LONGEST = 2000  # characters of a sentence: what an error quotes may be of any length


class SafeConsole(Console):
    """A console of rich that prints `printable` text; what rich itself sends to move the cursor passes."""

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """As rich renders, piece by piece."""
        for segment in super().render(*args, **kwargs):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = SafeConsole()
log = SafeConsole(stderr=True)


def print_error(error: Exception | str) -> None:
    """One line on standard error: what went wrong, shortened in its middle."""
    text = " ".join(str(error).split("\n"))
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    log.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)


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
