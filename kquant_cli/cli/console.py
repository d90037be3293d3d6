"""Where output goes: results to standard output, everything else to standard error."""

from rich.console import Console

console = Console()
log = Console(stderr=True)
