"""What is said where a model cannot be run, or a matrix not be observed: those are encoded without statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kquant_cli.errors import KQuantError, is_shortage
from kquant_cli.hf.failures import FAILURES, code_sentence, first_line, needs_code

# Why a matrix has no statistics: ends of sentences about several of them.
UNUSED: Final = "the model that transformers makes of the checkpoint does not use them"
LOOKED_UP: Final = "their rows are looked up, not multiplied"
WRONG_SIDE: Final = "they are stored with rows and columns the other way round than their module multiplies"
SQUARE: Final = "they are only parts of a tensor, and square, so that their input side is not certain"
INSIDE: Final = "transformers fuses them with others, and their inputs stay inside (an expert's last projection)"


class StatisticsUnavailable(KQuantError):  # noqa: N818 (what the user reads is that, not an error)
    """The inputs of the model's layers cannot be observed; a bundle can still be made, without channel scales."""


@contextmanager
def or_unavailable(what: str) -> Iterator[None]:
    """Turn transformers' failure into one sentence about `what`; KQuantError passes, and a shortage of memory."""
    try:
        yield
    except FAILURES as error:
        if is_shortage(error):
            raise
        said = f"{type(error).__name__}: {first_line(error, 'no reason given').rstrip('.')}"
        reason = code_sentence("it") if needs_code(error) else said
        raise StatisticsUnavailable(f"{what} cannot be run by transformers ({reason})") from error
