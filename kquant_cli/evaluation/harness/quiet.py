"""Keeps lm-evaluation-harness to itself: its bars, log lines and prints would run into kquant's own output."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of tqdm, no prints, and of the log only errors."""
    from tqdm import tqdm  # noqa: PLC0415

    logger = logging.getLogger("lm_eval")
    level, make = logger.level, tqdm.__init__

    def make_hidden(bar: Any, *args: Any, **options: Any) -> None:
        make(bar, *args, **{**options, "disable": True})

    logger.setLevel(logging.ERROR)
    tqdm.__init__ = make_hidden
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__ = make
        logger.setLevel(level)
