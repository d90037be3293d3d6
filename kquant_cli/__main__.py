"""The command line as a process of its own: `kquant`, and `python -m kquant_cli`.

Most objects of such a process are what its imports made, and stay: the garbage collector is asked to look at them
seldom, and at the end they are left to the system in place of being freed one by one, which takes torch and
transformers a second.
"""

import atexit
import gc
import os
import sys
from typing import Any, NoReturn

from kquant_cli.cli import main


def run() -> NoReturn:
    """Run the command line and end the process."""
    gc.set_threshold(100_000, 50, 100)
    try:
        main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code or 0
    if isinstance(code, int):
        _end(code)
    sys.exit(code)  # a sentence, which Python prints


def _end(code: int) -> None:
    """End the process after what was registered for that, if all output can be written."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a pipe that is closed, a disk that is full: Python's own end says so
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    run()
