"""Stand-ins for `kquant_cli.speed.measure`, for processes that are to import no torch and transformers."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, Never

from kquant_cli.errors import KQuantError

if parent_process() is not None and "IMPORTS_SLOWLY" in os.environ:  # as torch and transformers do
    print(f"importing in {os.getpid()}", file=sys.stderr, flush=True)
    time.sleep(1)


@dataclass(frozen=True)
class Workload:
    """As the real one."""

    prompt: int = 256
    new: int = 32


class Measurement:
    """Of which nothing is made here."""


def measure(*_: Any) -> Never:
    """Say that it has begun, and go on for longer than a test waits."""
    print(f"measuring in {os.getpid()}", file=sys.stderr, flush=True)
    time.sleep(600)
    raise TimeoutError


def refuse(path: str, *_: Any) -> Never:
    """A sentence for the user."""
    raise KQuantError(f"{path} cannot be measured")


def die(path: str, *_: Any) -> Never:
    """As a process does where memory runs out."""
    os._exit(9)
