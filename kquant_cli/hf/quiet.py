"""Keeps transformers' bars and warnings from the user: what matters of them is an error here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of transformers; afterwards its settings are what they were."""
    from transformers.utils import logging  # noqa: PLC0415 (seconds to import)

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
